"""`degu.pki`: certificates that OpenSSL's strictest checks accept, and nothing lost."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from degu.client import SSLClient
from degu.errors import TLSError
from degu.pki import CA_DAYS, make_ca, make_certificate
from degu.server import SSLServer


def load(path: Any) -> x509.Certificate:
    """The certificate in a PEM file."""
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


@pytest.fixture
def folder(tmp_path):
    """A folder with a CA."""
    path, made = make_ca(tmp_path)
    assert (path, made) == (str(tmp_path / "ca.pem"), True)
    return tmp_path


def test_openssl_accepts_it_for_both_sides(folder):
    """As a server's and as a client's certificate, in strict mode; not as a CA."""
    config = make_certificate(folder, "desk", ["desk.local", "::1"])
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", config["ca_file"]]
    for extra in (
        ["-purpose", "sslserver", "-verify_hostname", "desk.local"],
        ["-purpose", "sslserver", "-verify_ip", "::1"],
        ["-purpose", "sslclient"],
    ):
        subprocess.run([*verify, *extra, config["cert_file"]], check=True)
    for extra in (["-verify_hostname", "other.local"], ["-verify_ip", "::2"]):
        done = subprocess.run([*verify, *extra, config["cert_file"]], check=False)
        assert done.returncode != 0
    below = make_certificate(folder, "phone")
    chain = ["openssl", "verify", "-CAfile", config["cert_file"], below["cert_file"]]
    assert subprocess.run(chain, check=False).returncode != 0


def test_two_devices_meet(folder, tmp_path):
    """The sslconfigs are all that both sides need; one of another CA is refused."""
    desk, phone = make_certificate(folder, "desk"), make_certificate(folder, "phone")
    make_ca(tmp_path / "other")
    stranger = make_certificate(tmp_path / "other", "phone")
    stranger["ca_file"] = desk["ca_file"]

    def app(request):
        [[[_, name]]] = request["ssl_peercert"]["subject"]
        return 200, "OK", {"name": name}, None

    with SSLServer(desk, ("127.0.0.1", 0), app).running() as server:
        client = SSLClient(phone, server.address)
        assert client.get("/").headers == {"name": "phone"}
        client.close()
        with pytest.raises(TLSError):
            SSLClient(stranger, server.address).get("/")


def test_a_ca_is_made_once(folder):
    """A second call finds it; half of one is an error; keys are for their owner."""
    before = (folder / "ca.pem").read_bytes()
    assert make_ca(folder) == (str(folder / "ca.pem"), False)
    assert (folder / "ca.pem").read_bytes() == before
    make_certificate(folder, "desk")
    for name in ("ca-key.pem", "desk-key.pem"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    (folder / "ca.pem").unlink()
    with pytest.raises(ValueError, match="neither"):
        make_ca(folder)
    with pytest.raises(FileNotFoundError):
        make_certificate(folder, "phone")


def test_nothing_is_overwritten(folder):
    """A name that is taken is an error, and both files stay as they were."""
    config = make_certificate(folder, "desk")
    key = Path(config["key_file"]).read_bytes()
    with pytest.raises(FileExistsError):
        make_certificate(folder, "desk")
    assert Path(config["key_file"]).read_bytes() == key
    Path(config["key_file"]).unlink()
    with pytest.raises(FileExistsError):
        make_certificate(folder, "desk")
    assert not Path(config["key_file"]).exists()


@contextmanager
def room_for(size) -> Iterator[None]:
    """Let no file grow beyond `size`, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 300])
def test_a_full_disk_leaves_nothing(tmp_path, size):
    """No half of a file, no key without certificate; once there is room, both.

    A key fits into 300 bytes, a certificate does not.
    """
    for make, key in (
        (make_ca, "ca-key.pem"),
        (lambda folder: make_certificate(folder, "desk"), "desk-key.pem"),
    ):
        before = sorted(tmp_path.iterdir())
        with room_for(size), pytest.raises(OSError, match="File too large"):
            make(tmp_path)
        assert sorted(tmp_path.iterdir()) == before
        make(tmp_path)
        assert len(list(tmp_path.iterdir())) == len(before) + 2
        assert 0 < (tmp_path / key).stat().st_size <= 300


def test_a_certificate_ends_with_its_ca_at_the_latest(folder):
    """The days are those asked for, from an hour ago, and not beyond the CA's."""
    short = load(make_certificate(folder, "short", days=2)["cert_file"])
    length = short.not_valid_after_utc - short.not_valid_before_utc
    assert length == timedelta(days=2, hours=1)
    ca = load(folder / "ca.pem")
    long = load(make_certificate(folder, "long", days=CA_DAYS)["cert_file"])
    assert long.not_valid_after_utc == ca.not_valid_after_utc


@pytest.mark.parametrize(
    ("name", "hosts", "days"),
    [
        ("", [], 1),
        ("ca", [], 1),
        ("../x", [], 1),
        (".x", [], 1),
        ("a b", [], 1),
        ("x" * 62, [], 1),
        ("x", ["a b"], 1),
        ("x", ["-.-.!"], 1),
        ("x", [""], 1),
        ("x", [], 0),
        ("x", [], CA_DAYS + 1),
    ],
)
def test_bad_arguments_are_refused(folder, name, hosts, days):
    """Nothing is written for a bad name, host or number of days."""
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match="expected"):
        make_certificate(folder, name, hosts, days=days)
    assert sorted(folder.iterdir()) == before
    assert make_certificate(folder, "x", ["*.local", "a-b.c"], days=1)
