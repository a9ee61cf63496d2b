"""Run httpx's own tests against Degu's fixtures; see README.rst."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REQUIREMENT = "httpx==0.28.1"
AT_LEAST = 30


def download(folder: Path) -> Path:
    """Fetch and unpack the sdist; returns its directory."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    # Only httpx itself as source, or pip would build its build tools too.
    command += ["--no-binary", "httpx", REQUIREMENT, "--dest", str(folder)]
    subprocess.run(command, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def run(suite: Path, args: list[str]) -> tuple[int, str]:
    """Put our conftest in, and run; returns the exit status and the output."""
    (suite / "tests" / "conftest.py").write_text(
        (HERE / "httpx_conftest.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "anyio", "-p"]
    command += ["degu.testing.plugin", "-p", "no:cacheprovider", "--degu-leaks"]
    # Trio keeps its idle threads for the next ten seconds.
    command += ["-o", "degu_leaks_allow='Trio thread*", "tests", *args]
    result = subprocess.run(
        command, cwd=suite, env=env, capture_output=True, text=True, timeout=600
    )
    return result.returncode, result.stdout + result.stderr


def main(args: list[str]) -> int:
    """Run; 0 where enough of the tests passed and none failed."""
    with tempfile.TemporaryDirectory(prefix="degu-foreign-") as folder:
        status, output = run(download(Path(folder)), args)
    print(output)
    passed = re.search(r"(\d+) passed", output)
    if status == 0 and int(passed[1] if passed else 0) < AT_LEAST:
        print(f"expected at least {AT_LEAST} tests to pass")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
