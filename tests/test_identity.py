"""degu.identity: a key and a certificate, made once, for their owner alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from degu.certificate import check_certificate
from degu.errors import PeerFileError
from degu.fingerprint import build_fingerprint
from degu.identity import load_identity, make_identity
from tests.devices import (
    a_device_anna,  # noqa: F401
    build_pem,
)

posix = pytest.mark.skipif(os.name != "posix", reason="about POSIX file modes")


def test_an_identity_is_made_once(tmp_path):
    """The first call makes key and certificate, the next ones load them."""
    made = make_identity(tmp_path / "new" / "device")

    assert make_identity(tmp_path / "new" / "device") == made
    assert load_identity(tmp_path / "new" / "device") == made
    assert made.fingerprint == build_fingerprint(made.certificate)
    assert make_identity(tmp_path / "other").fingerprint != made.fingerprint


@posix
def test_an_identity_is_for_its_owner_only(tmp_path):
    """Mode 0700 and 0600, whatever the umask is; nothing else is left there."""
    program = (
        "import os, sys; os.umask(int(sys.argv[2], 8))\n"
        "from degu.peers import make_identity; make_identity(sys.argv[1])"
    )
    for umask in ("000", "077"):
        directory = tmp_path / umask
        subprocess.run(
            [sys.executable, "-c", program, directory, umask], check=True, timeout=60
        )

        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert [path.name for path in directory.iterdir()] == ["identity.pem"]
        assert stat.S_IMODE((directory / "identity.pem").stat().st_mode) == 0o600


def test_the_certificate_is_what_strict_verifiers_want(anna):
    """P-256, end entity, for both ends of a connection, ten years, nothing personal."""
    parsed = x509.load_der_x509_certificate(anna.identity.certificate)
    key = parsed.public_key()

    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert parsed.subject == parsed.issuer
    assert parsed.subject.rfc4514_string().startswith("CN=degu-")
    assert parsed.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3600)
    check_certificate(anna.identity.certificate)


def test_processes_that_start_at_once_get_one_identity(tmp_path):
    """Eight processes make it at the same time: all have the same, and it is whole."""
    program = (
        "import sys; from degu.peers import make_identity\n"
        "sys.stdin.read(1); print(make_identity(sys.argv[1]).id)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "device"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    ids = {child.communicate("\n", timeout=60)[0] for child in children}

    assert all(child.returncode == 0 for child in children)
    assert ids == {load_identity(tmp_path / "device").id + "\n"}


def test_threads_that_start_at_once_get_one_identity(tmp_path):
    """The lock also holds between the threads of one process."""
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(make_identity, [tmp_path / "device"] * 16))

    assert len(made) == 1


def test_a_half_written_identity_is_none(tmp_path):
    """What a process left that was killed while it wrote is cleaned up."""
    directory = tmp_path / "device"
    directory.mkdir(mode=0o700)
    (directory / "identity.pem.new").write_bytes(b"-----BEGIN PRIV")
    identity = make_identity(directory)
    assert os.listdir(directory) == ["identity.pem"]

    (directory / "identity.pem.new").write_bytes(b"-----BEGIN PRIV")
    assert load_identity(directory) == identity
    assert os.listdir(directory) == ["identity.pem"]


def test_there_has_to_be_an_identity_to_load(tmp_path):
    """Loading makes nothing up."""
    with pytest.raises(PeerFileError, match="expected an identity, got no such file"):
        load_identity(tmp_path / "device")


@posix
@pytest.mark.parametrize("name", ["", "identity.pem"])
def test_an_identity_that_others_can_reach_is_refused(tmp_path, name):
    """A key that was open to others may be known to them; the user has to decide."""
    directory = tmp_path / "device"
    made = make_identity(directory)
    path = directory / name
    right = stat.S_IMODE(path.stat().st_mode)

    for wrong in (0o040, 0o004, 0o002):
        path.chmod(right | wrong)
        with pytest.raises(PeerFileError, match=f"expected mode {right:04o}"):
            make_identity(directory)

    path.chmod(right)
    assert make_identity(directory) == made


KEY = ec.generate_private_key(ec.SECP256R1())
GOOD = build_pem()


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        (b"", "damaged file of 0 bytes"),
        (b"\0" * 100, "damaged"),
        (GOOD[:-100], "damaged"),
        (GOOD[: GOOD.index(b"-----BEGIN CERT")], "damaged"),
        (GOOD[GOOD.index(b"-----BEGIN CERT") :], "damaged"),
        (
            GOOD[: GOOD.index(b"-----BEGIN CERT")]
            + build_pem()[len(GOOD[: GOOD.index(b"-----BEGIN CERT")]) :],
            "got another key's",
        ),
        (build_pem(last=timedelta(hours=-1)), "expired on"),
        (build_pem(first=timedelta(hours=1)), "not valid before"),
        (build_pem(ca=True), "got a CA"),
    ],
)
def test_a_damaged_identity_is_explained_and_kept(tmp_path, pem, message):
    """Each way of being wrong has its message, and no byte of the file is lost."""
    directory = tmp_path / "device"
    directory.mkdir(mode=0o700)
    path = directory / "identity.pem"
    path.touch(mode=0o600)
    path.write_bytes(pem)

    for _ in range(2):
        with pytest.raises(PeerFileError, match=message) as caught:
            make_identity(directory)
        assert "the file was left as it is" in str(caught.value)
        assert path.read_bytes() == pem


def test_an_identity_that_is_not_a_file_is_explained(tmp_path):
    """A directory in its place is an error with the path."""
    (tmp_path / "device" / "identity.pem").mkdir(parents=True)
    (tmp_path / "device").chmod(0o700)
    (tmp_path / "device" / "identity.pem").chmod(0o700)
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(PeerFileError, match=r"identity\.pem"):
        make_identity(tmp_path / "device")
    with pytest.raises(PeerFileError, match="expected a directory"):
        make_identity(tmp_path / "file")


def test_the_extra_is_named_where_it_is_missing(tmp_path):
    """Without cryptography the import works and the first use says what to install."""
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from degu.peers import make_identity\n"
        "make_identity(sys.argv[1])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "device"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert "pip install 'degu[peers]'" in result.stderr


def test_importing_it_does_not_import_cryptography():
    """A server that only looks peers up does not pay for it."""
    program = (
        "import sys, degu.peers; print([m for m in sys.modules if 'cryptography' in m])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )

    assert result.stdout.strip() == "[]"
