"""Devices that know each other: identity, trusted peers, pinned TLS, pairing.

    identity.pem     a device's key and self-signed certificate, made once
    peers.json       whom it trusts: the truth
    anchors/         the same certificates, named as OpenSSL looks them up

There is no CA. A connection is let through by the TLS handshake only where the
certificate that comes is, byte for byte, one of the pinned ones: they are the only
trust anchors, and none of them may sign others. Host names play no part, so their
check is switched off. After the handshake the SHA-256 of the certificate is looked
up in the store once more, since OpenSSL keeps the anchors that it has seen, and a
peer that was removed meanwhile is refused by this.

OpenSSL reads `anchors/` at each handshake, so a new peer is let in at once, also by
a server in another process that was started before.

Needs the extra ``degu[peers]`` (cryptography) to make, load and check certificates;
the rest does not import it. The values and messages are in `degu.pairing`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from degu.address import Address, connect
from degu.client import Connection, SSLClient
from degu.errors import DeguError, ParseError, TLSError, shown
from degu.pairing import (
    TOKEN_SIZE,
    Invitation,
    Message,
    Pairing,
    PairingError,
    Peer,
    State,
    build_fingerprint,
    build_peer_fields,
    build_refused_error,
    check_fresh,
    format_fingerprint,
    format_invitation,
    parse_fingerprint,
    parse_invitation,
    parse_peer_fields,
)
from degu.tls import (
    SSLContext,
    SSLSocket,
    build_client_sslctx,
    handshake,
    wrap_client,
)

if TYPE_CHECKING:
    from cryptography import x509

__all__ = [
    "Identity",
    "Invitation",
    "PairingApp",
    "PairingError",
    "PairingWindow",
    "Peer",
    "PeerClient",
    "PeerFileError",
    "PeerStore",
    "PeersOnly",
    "State",
    "accept_invitation",
    "build_fingerprint",
    "check_certificate",
    "expand_address",
    "format_fingerprint",
    "format_invitation",
    "load_identity",
    "make_identity",
    "pair",
    "parse_fingerprint",
    "parse_invitation",
    "require_peer",
]

log = logging.getLogger(__name__)

LIFETIME = timedelta(days=3650)
"""How long a certificate is good: what is pinned needs no short life, and each new
one has to be told to every peer."""

CLOCK_SKEW = timedelta(days=1)
"""How much a peer's clock may be behind ours when a certificate is new."""

LOCK_TIMEOUT = 10.0
"""Seconds to wait for another process that changes the same directory."""

WINDOW_SECONDS = 120.0
"""Seconds a pairing window is open: time to walk to the other device and compare."""

INVITATION_SECONDS = 600.0
"""Seconds an invitation is good: time to send it and to have it pasted."""

MAX_MESSAGE_SIZE = 16 * 1024
"""Bytes of a pairing message: a certificate in base64, and room."""

POLL_SECONDS = 2.0
"""Seconds a server holds a peer that waits for the user, before it has to ask again."""

MAX_PAUSE = 300.0
"""Seconds between windows at most; it doubles with each failed attempt, from 2."""


class PeerFileError(DeguError, OSError):
    """A file of an identity or a store can't be used; it was left as it is."""


def _import_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "degu.peers: expected the package 'cryptography', which is not installed: "
            "pip install 'degu[peers]'"
        ) from error


# --- private files ----------------------------------------------------------------


def _make_directory(path: str | os.PathLike[str]) -> str:
    """Make a directory that is this user's own, or check that it is."""
    directory = os.path.abspath(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        status = os.stat(directory)
    except OSError as error:
        raise PeerFileError(f"{directory}: expected a directory: {error}") from error
    _check_private(directory, status, "0700")
    return directory


def _check_private(path: str, status: os.stat_result, mode: str) -> None:
    if os.name != "posix":
        return  # There the directory's ACL, inherited from the profile, protects it.
    if status.st_uid != os.geteuid():
        raise PeerFileError(
            f"{path}: expected a file of user {os.geteuid()}, "
            f"got one of user {status.st_uid}"
        )
    if status.st_mode & 0o077:
        raise PeerFileError(
            f"{path}: expected mode {mode}, as others must not use it, "
            f"got {stat.S_IMODE(status.st_mode):04o}: chmod {mode} it if nobody did"
        )


def _read_private(path: str) -> bytes:
    """Read a file of mode 0600; `FileNotFoundError` where there is none."""
    try:
        with open(path, "rb") as file:
            # Of the open file, so that it can't be another one by now.
            _check_private(path, os.fstat(file.fileno()), "0600")
            return file.read()
    except (FileNotFoundError, PeerFileError):
        raise
    except OSError as error:
        raise PeerFileError(
            f"{path}: expected a file to read, got {error.strerror}"
        ) from error


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Keep other threads and processes from changing `directory`.

    The lock is on the directory itself, so it leaves no file and ends with its holder.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows
        yield
        return
    folder = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PeerFileError(
                        f"{directory}: expected it to be free within {LOCK_TIMEOUT} s, "
                        "got no lock: another process holds it"
                    ) from None
                time.sleep(0.005)
        yield
    finally:
        # Closing alone would leave the lock to a process forked meanwhile.
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_UN)
        os.close(folder)


def _write_private(path: str, data: bytes, *, exclusive: bool = False) -> None:
    """Put a whole file of mode 0600 at `path`, or nothing; under the lock.

    `FileExistsError` if `exclusive` and there is one.
    """
    new = f"{path}.new"
    # What a process left that died here; the lock says that it is not in use.
    with suppress(FileNotFoundError):
        os.unlink(new)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(new, path)
        else:
            os.replace(new, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new)
    _sync_directory(os.path.dirname(path))


def _sweep(directory: str) -> None:
    """Remove what a process left that died while it wrote."""
    if any(name.endswith(".new") for name in os.listdir(directory)):
        with _locked(directory):
            for name in os.listdir(directory):
                if name.endswith(".new"):
                    os.unlink(os.path.join(directory, name))


def _sync_directory(directory: str) -> None:
    with suppress(OSError):  # Windows can't open one.
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- certificates -----------------------------------------------------------------


def check_certificate(certificate: bytes, now: datetime | None = None) -> None:
    """Check that `certificate` (DER `bytes`) can be pinned.

    It has to be self-signed, of a subject that OpenSSL can look up, valid at `now`
    (by default: now) and no CA: one that may sign others would let in whom it
    likes. Raises `ParseError`.
    """
    _import_cryptography()
    from cryptography import x509

    parsed = _parse_certificate(certificate)
    try:
        parsed.verify_directly_issued_by(parsed)
    except Exception as error:  # InvalidSignature, ValueError, TypeError
        raise ParseError(
            f"certificate: expected a self-signed one, got {parsed.issuer}'s: {error}"
        ) from error
    try:
        basic = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
        can_sign = basic.ca
    except x509.ExtensionNotFound:
        # Without the extension OpenSSL takes an old self-signed one for a CA.
        can_sign = True
    except ValueError as error:
        raise ParseError(f"certificate: expected X.509 v3, got {error}") from error
    if can_sign:
        raise ParseError(
            "certificate: expected one that can't sign others (CA:FALSE), got a CA"
        )
    _check_validity(parsed, datetime.now(UTC) if now is None else now)
    _build_subject_hash(parsed)


def _parse_certificate(certificate: bytes) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        canonical = parsed.public_bytes(Encoding.DER)
    except ValueError as error:
        raise ParseError(f"certificate: expected DER, got {error}") from error
    if canonical != certificate:
        raise ParseError("certificate: expected DER, got something around it")
    return parsed


def _check_validity(parsed: x509.Certificate, now: datetime) -> None:
    first, last = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    if not first <= now <= last:
        what = "expired on" if now > last else "is not valid before"
        when = last if now > last else first
        raise ParseError(
            f"certificate: expected one that is valid, got one that {what} "
            f"{when:%Y-%m-%d %H:%M} UTC (the clock here says {now:%Y-%m-%d %H:%M} UTC)"
        )


def _build_subject_hash(parsed: x509.Certificate) -> str:
    """The 8 hex digits by which OpenSSL finds a certificate in a directory.

    As ``openssl x509 -subject_hash``: SHA-1 of the name with its texts as UTF-8, in
    lower case and without superfluous spaces. A file name, nothing is secured by it.
    """
    sets = []
    for rdn in parsed.subject.rdns:
        attributes = list(rdn)
        if len(attributes) != 1 or not isinstance(attributes[0].value, str):
            raise ParseError(
                f"certificate: expected a subject of plain texts, got {parsed.subject}"
            )
        text = b" ".join(attributes[0].value.encode().split()).lower()
        pair = _build_oid(attributes[0].oid.dotted_string) + _build_der(0x0C, text)
        sets.append(_build_der(0x31, _build_der(0x30, pair)))
    digest = hashlib.sha1(b"".join(sets), usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}"


def _build_der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content


def _build_oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = b""
    for number in [40 * first + second, *rest]:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(0x80 | (number & 0x7F))
        content += bytes(reversed(digits))
    return _build_der(0x06, content)


def _format_pem(certificate: bytes) -> bytes:
    text = base64.encodebytes(certificate).replace(b"\n", b"")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join(
        [b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""]
    )


# --- identity ---------------------------------------------------------------------

IDENTITY_FILE = "identity.pem"


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's key and certificate; comes from `make_identity` or `load_identity`."""

    path: str
    """The PEM file with the private key and the certificate, mode 0600."""
    certificate: bytes
    """DER."""

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of the certificate, 32 bytes."""
        return build_fingerprint(self.certificate)

    @property
    def id(self) -> str:
        """The fingerprint as people read it (`degu.pairing.format_fingerprint`)."""
        return format_fingerprint(self.fingerprint)

    def build_peer(self, name: str, addresses: Iterable[Address] = ()) -> Peer:
        """Build what others may know of this device; `ValueError` as `Peer`."""
        return Peer(name, self.certificate, tuple(addresses))


def make_identity(directory: str | os.PathLike[str]) -> Identity:
    """Load the identity in `directory`, or make one there if there is none.

    A P-256 key and a self-signed certificate for ten years. Of several processes that
    do this at once, all get the same identity; a process that dies leaves a whole
    one or none. Raises `PeerFileError` as `load_identity`; what is there is never
    replaced.
    """
    _import_cryptography()
    directory = _make_directory(directory)
    path = os.path.join(directory, IDENTITY_FILE)
    if not os.path.lexists(path):
        with _locked(directory), suppress(FileExistsError):
            if not os.path.lexists(path):
                _write_private(path, _build_identity_pem(), exclusive=True)
    return load_identity(directory)


def load_identity(directory: str | os.PathLike[str]) -> Identity:
    """Load the identity in `directory`.

    Raises `PeerFileError` where there is none, others could read it, the file is
    damaged, or the certificate expired.
    """
    _import_cryptography()
    directory = _make_directory(directory)
    _sweep(directory)
    path = os.path.join(directory, IDENTITY_FILE)
    try:
        certificate = _parse_identity_pem(_read_private(path))
    except FileNotFoundError:
        raise PeerFileError(f"{path}: expected an identity, got no such file") from None
    except PeerFileError:
        raise
    except (ValueError, TypeError) as error:
        raise PeerFileError(f"{path}: {error}; the file was left as it is") from error
    return Identity(path, certificate)


def _build_identity_pem() -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    # A name of its own, since OpenSSL looks anchors up by it; it tells nothing.
    name = x509.Name.from_rfc4514_string(f"CN=degu-{secrets.token_hex(16)}")
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
    )
    for extension, critical in _build_extensions(public):
        certificate = certificate.add_extension(extension, critical)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _build_extensions(public: Any) -> list[tuple[x509.ExtensionType, bool]]:
    """An end entity for both ends of a connection (RFC 5280 §4.2.1), as strict
    verifiers (VERIFY_X509_STRICT, the default from Python 3.13 on) want it.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    usage = dict.fromkeys(
        [
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ],
        False,
    )
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.SubjectKeyIdentifier.from_public_key(public)
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject)
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.KeyUsage(digital_signature=True, **usage), True),
        (x509.ExtendedKeyUsage(both), False),
        (subject, False),
        (authority, False),
    ]


def _parse_identity_pem(data: bytes) -> bytes:
    """The certificate's DER; raises `ValueError` or `TypeError`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(data, password=None)
        parsed = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise ValueError(
            f"expected a private key and a certificate in PEM, got a damaged file "
            f"of {len(data)} bytes ({str(error).splitlines()[0][:80]})"
        ) from error
    if key.public_key() != parsed.public_key():
        raise ValueError("expected the certificate of this key, got another key's")
    certificate = parsed.public_bytes(serialization.Encoding.DER)
    check_certificate(certificate)
    return certificate


# --- trusted peers ----------------------------------------------------------------

STORE_FILE = "peers.json"
ANCHORS = "anchors"
STORE_VERSION = 1

NO_REVOCATIONS = "00000000.r0"
"""An empty file among the anchors, named like a revocation list that nobody asks for:
a directory without any such name would be refused as a mistake in an sslconfig."""


class PeerStore:
    """Whom this device trusts; for several threads and processes at once.

    A change is seen by every `PeerStore` on the directory at its next look, and by
    the TLS handshakes of servers that run.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Open the store in `directory`, which is made if need be (mode 0700).

        Raises `PeerFileError` for a file that is damaged or open to others; it stays.
        """
        self.directory = _make_directory(directory)
        self.path = os.path.join(self.directory, STORE_FILE)
        self.anchors = _make_directory(os.path.join(self.directory, ANCHORS))
        _sweep(self.directory)
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._peers: dict[bytes, Peer] = {}
        self._load()

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All trusted peers, the newest last."""
        return tuple(self._load().values())

    def get(self, fingerprint: bytes) -> Peer | None:
        """The trusted peer with this `fingerprint` (32 bytes), or None."""
        return self._load().get(fingerprint)

    def add(self, peer: Peer) -> Peer:
        """Trust `peer` from now on, or bring a trusted one up to date.

        Returns it with `added`. Raises `ParseError` for a certificate that can't be
        pinned (`check_certificate`), `PeerFileError`, `OSError`.
        """
        check_certificate(peer.certificate)
        with self._changing() as peers:
            known = peers.get(peer.fingerprint)
            added = known.added if known else f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            peers[peer.fingerprint] = peer = replace(peer, added=added)
        return peer

    def remove(self, fingerprint: bytes) -> bool:
        """Trust this peer no more; whether it was trusted.

        Servers with `require_peer` refuse its next connection, those with `PeersOnly`
        its next request as well.
        """
        with self._changing() as peers:
            return peers.pop(fingerprint, None) is not None

    def replace(self, fingerprint: bytes, peer: Peer) -> Peer:
        """Trust `peer` in place of the one with `fingerprint`, as one change.

        For a device that renews its certificate and says so over a connection made
        with the old one. Raises `KeyError` if the old one is not trusted.
        """
        check_certificate(peer.certificate)
        with self._changing() as peers:
            old = peers.pop(fingerprint)
            peers[peer.fingerprint] = peer = replace(peer, added=old.added)
        return peer

    def server_sslconfig(self, identity: Identity) -> dict[str, Any]:
        """The sslconfig of a server that only trusted peers get through to.

        Give the app `require_peer` or `PeersOnly` too: they refuse who was removed.
        """
        with _locked(self.directory):
            self._write_anchors(self._load())
        return {
            "cert_file": identity.path,
            "key_file": identity.path,
            "ca_path": self.anchors,
        }

    def client_sslconfig(self, identity: Identity, peer: Peer) -> dict[str, Any]:
        """The sslconfig of a client that talks to `peer` and nobody else.

        Raises `PairingError` if the store does not trust it (any more).
        """
        with _locked(self.directory):
            names = self._write_anchors(self._load())
        if peer.fingerprint not in names:
            raise PairingError(f"expected a trusted peer, got {peer.name!r} {peer.id}")
        return {
            "cert_file": identity.path,
            "key_file": identity.path,
            "ca_file": os.path.join(self.anchors, names[peer.fingerprint]),
            # The certificate itself is pinned; names and addresses change.
            "check_hostname": False,
        }

    def _load(self) -> dict[bytes, Peer]:
        """The peers by fingerprint, read again if the file is another one by now."""
        with self._lock:
            seen = _stat(self.path)
            if seen != self._seen:
                self._peers = {} if seen is None else _read_peers(self.path)
                self._seen = seen
            return self._peers

    @contextmanager
    def _changing(self) -> Iterator[dict[bytes, Peer]]:
        with _locked(self.directory):
            peers = dict(self._load())
            yield peers
            _write_private(self.path, _format_peers(peers.values()))
            self._write_anchors(peers)

    def _write_anchors(self, peers: dict[bytes, Peer]) -> dict[bytes, str]:
        """Make `anchors` what the store says; the file name of each fingerprint."""
        wanted, names = _build_anchors(peers)
        there = set(os.listdir(self.anchors))
        for name in there - wanted.keys():
            os.unlink(os.path.join(self.anchors, name))
        for name, data in wanted.items():
            path = os.path.join(self.anchors, name)
            if name not in there or _read_private(path) != data:
                _write_private(path, data)
        return names


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)


def _build_anchors(
    peers: dict[bytes, Peer],
) -> tuple[dict[str, bytes], dict[bytes, str]]:
    _import_cryptography()
    wanted = {NO_REVOCATIONS: b""}
    names = {}
    for fingerprint, peer in sorted(peers.items()):
        subject = _build_subject_hash(_parse_certificate(peer.certificate))
        number = 0
        while (name := f"{subject}.{number}") in wanted:
            number += 1
        wanted[name] = _format_pem(peer.certificate)
        names[fingerprint] = name
    return wanted, names


def _format_peers(peers: Iterable[Peer]) -> bytes:
    entries = [
        build_peer_fields(peer) | {"fingerprint": peer.id, "added": peer.added}
        for peer in peers
    ]
    document = {"version": STORE_VERSION, "peers": entries}
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _read_peers(path: str) -> dict[bytes, Peer]:
    try:
        return _parse_peers(_read_private(path))
    except PeerFileError:
        raise
    except ValueError as error:
        raise PeerFileError(f"{path}: {error}; the file was left as it is") from error


def _parse_peers(data: bytes) -> dict[bytes, Peer]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ParseError(f"expected JSON, got a damaged file ({error})") from error
    if not isinstance(document, dict) or document.get("version") != STORE_VERSION:
        raise ParseError(
            f"expected the version {STORE_VERSION} of a peer store, got {shown(data)}"
        )
    entries = document.get("peers")
    if not isinstance(entries, list):
        raise ParseError(f"peers: expected a list, got {shown(entries)}")
    peers = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise ParseError(f"peers: expected objects, got {shown(entry)}")
        peer = parse_peer_fields(entry)
        fingerprint = parse_fingerprint(str(entry.get("fingerprint")))
        if fingerprint != peer.fingerprint:
            raise ParseError(
                f"fingerprint: expected {peer.id}, that of the certificate, "
                f"got {format_fingerprint(fingerprint)}"
            )
        peers[fingerprint] = replace(peer, added=str(entry.get("added", "")))
    return peers


# --- the server's end -------------------------------------------------------------

App = Callable[[Any], tuple[int, str, dict[str, Any], Any]]
OnConnect = Callable[[dict[str, Any], Any], bool]
OnRefused = Callable[[bytes | None], object]


def require_peer(store: PeerStore, on_refused: OnRefused | None = None) -> OnConnect:
    """Make an `app.on_connect` that lets in the peers of `store` and nobody else.

    It runs after the handshake and before the first request, and puts the `Peer`
    into ``session['peer']``. `on_refused` is called with the certificate (DER, or
    None where there is none) of who was not let in.
    """

    def on_connect(session: dict[str, Any], sock: Any) -> bool:
        certificate = _read_peer_certificate(sock)
        try:
            peer = store.get(build_fingerprint(certificate)) if certificate else None
        except PeerFileError:
            log.exception("no peer is let in")
            peer = None
        if peer is None:
            if on_refused is not None:
                on_refused(certificate)
            return False
        session["peer"] = peer
        return True

    return on_connect


def _read_peer_certificate(sock: Any) -> bytes | None:
    # A plain socket has no certificate, so nobody gets in without TLS.
    if not isinstance(sock, SSLSocket):
        return None
    return sock.getpeercert(True)


class PeersOnly:
    """An app for trusted peers alone: ``request['session']['peer']`` is who asks.

    Who is removed while connected gets a 403 and no further request through.
    """

    def __init__(
        self, app: App, store: PeerStore, on_refused: OnRefused | None = None
    ) -> None:
        """Put `app` behind `require_peer`; the app's own `on_connect` runs after it."""
        self.app = app
        self.store = store
        self._require = require_peer(store, on_refused)

    def __call__(self, request: Any) -> tuple[int, str, dict[str, Any], Any]:
        """Serve one request."""
        peer = request["session"].get("peer")
        if peer is None or self.store.get(peer.fingerprint) is None:
            return (403, "Forbidden", {"connection": "close"}, None)
        return self.app(request)

    def on_connect(self, session: dict[str, Any], sock: Any) -> bool:
        """Let in trusted peers."""
        if not self._require(session, sock):
            return False
        inner: OnConnect | None = getattr(self.app, "on_connect", None)
        return inner is None or inner(session, sock)


# --- the client's end -------------------------------------------------------------


def expand_address(address: Address) -> list[Address]:
    """Expand an address that came from another machine to what can be connected to.

    A link-local IPv6 address without a scope id can be on any interface of this
    machine: one 4-tuple for each. Any other address is itself.
    """
    if len(address) != 4 or not isinstance(address, tuple) or address[3]:
        return [address]
    if not address[0].lower().startswith(("fe8", "fe9", "fea", "feb")):
        return [address]
    host, port, flow_info, _ = address
    return [
        (host, port, flow_info, index)
        for index, name in socket.if_nameindex()
        if not name.startswith("lo")
    ]


def _expand_all(addresses: Iterable[Address]) -> list[Address]:
    return [one for address in addresses for one in expand_address(address)]


class PeerClient(SSLClient):
    """An `SSLClient` that talks to one trusted peer and to nobody else."""

    def __init__(
        self,
        store: PeerStore,
        identity: Identity,
        peer: Peer,
        address: Address,
        **options: Any,
    ) -> None:
        """Describe a client of `peer` at `address`; `options` are those of `SSLClient`.

        Raises `PairingError` for a peer that `store` does not trust.
        """
        super().__init__(store.client_sslconfig(identity, peer), address, **options)
        self.store = store
        self.peer = peer

    def connect(self) -> Connection:
        """Connect to the peer; raises as `SSLClient.connect`.

        `PairingError` if it was removed from the store, `TLSError` for any other
        certificate than its own, in both cases before a byte of HTTP is sent.
        """
        if self.store.get(self.peer.fingerprint) is None:
            raise PairingError(
                f"expected a trusted peer, got {self.peer.name!r}, which was removed"
            )
        connection = super().connect()
        return _check_pinned(connection, self.peer.fingerprint)


def _check_pinned(connection: Connection, fingerprint: bytes) -> Connection:
    """Close `connection` unless the peer showed just this certificate."""
    found = build_fingerprint(_read_peer_certificate(connection.sock) or b"")
    if found == fingerprint:
        return connection
    connection.close()
    raise TLSError(
        f"this side refused the peer's certificate: expected the fingerprint "
        f"{format_fingerprint(fingerprint)}, got {format_fingerprint(found)}"
    )


def _build_base_sslctx(identity: Identity) -> SSLContext:
    # Some anchor is needed to begin with; nobody else can have the key of ours.
    return build_client_sslctx({"ca_file": identity.path, "check_hostname": False})


def _read_certificate(identity: Identity, address: Address, timeout: float) -> bytes:
    """The certificate (DER) of whoever listens on `address`; nothing is sent to it."""
    sslctx = _build_base_sslctx(identity)
    # CERT_NONE: this connection is only there to look; what is done with the
    # certificate is up to the fingerprint or the users.
    sslctx.verify_mode = type(sslctx.verify_mode)(0)
    with connect(address, timeout) as sock, wrap_client(sslctx, sock, None) as sslsock:
        handshake(sslsock, timeout)
        certificate = sslsock.getpeercert(True)
    if certificate is None:
        raise TLSError("expected a certificate of the server, got none")
    return certificate


# --- pairing over HTTP: the server's end ------------------------------------------

JSON = "application/json"

WAIT: Message = {"type": "wait"}
"""An answer: nothing yet, ask again with the same."""


def _read_message(request: Any) -> Message:
    if request["method"] != "POST" or request["headers"].get("content-type") != JSON:
        raise ParseError(f"expected a POST of {JSON}")
    body = request["body"]
    data = b"" if body is None else body.read(MAX_MESSAGE_SIZE + 1)
    return _parse_json(data)


def _parse_json(data: bytes) -> Message:
    if len(data) > MAX_MESSAGE_SIZE:
        raise ParseError(f"expected a message of at most {MAX_MESSAGE_SIZE} bytes")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"expected JSON, got {shown(data)}") from error
    if not isinstance(message, dict):
        raise ParseError(f"expected a JSON object, got {shown(data)}")
    return message


def _format_json(message: Message) -> bytes:
    return json.dumps(message).encode()


class PairingWindow:
    """One short time in which one device may try once; from `PairingApp.open`.

    Any thread may use it. `code` and `peer` are None until the peer came; then show
    both and call `confirm()` or `refuse()`. `wait()` tells how it ended.
    """

    def __init__(self, app: PairingApp, seconds: float) -> None:
        """See `PairingApp.open`."""
        self.deadline = app.clock() + seconds
        self.trusted: Peer | None = None
        """The new peer, once both users said yes and it is in the store."""
        self._app = app
        self._pairing = Pairing("responder", app.me)
        self._attempt: str | None = None
        self._changed = threading.Condition()
        self._news: list[Callable[[], object]] = []

    @property
    def code(self) -> str | None:
        """The 6 digits to show, None as long as there are none."""
        return self._pairing.code

    @property
    def peer(self) -> Peer | None:
        """Who came, as it says; not trusted yet."""
        return self._pairing.peer

    @property
    def state(self) -> State:
        """How far it is; FAILED when the time is over, PAIRED when it is stored."""
        state = self._pairing.state
        if state is State.PAIRED:
            return State.COMPARING if self.trusted is None else state
        return State.FAILED if self._is_over() else state

    @property
    def attempted(self) -> bool:
        """Whether a device used up its one attempt."""
        return self._attempt is not None

    def confirm(self) -> None:
        """The user saw equal codes; raises `PairingError` when it is too late."""
        with self._changed:
            self._check_open()
            self._pairing.confirm()
            self._settle()
        self._tell_news()

    def refuse(self, why: str = "the other user said no") -> None:
        """The user saw other codes, or does not want to; closes the window."""
        with self._changed:
            if self._pairing.state is not State.PAIRED:
                self._pairing.refuse(why)
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> Peer | None:
        """Wait for the end, at most for `seconds`; the new peer or None."""
        left = self.deadline - self._app.clock()
        with self._changed:
            self._changed.wait_for(
                self._is_final, left if seconds is None else min(seconds, left)
            )
            return self.trusted

    def answer(self, message: Message) -> Message:
        """Answer the peer's `message`; raises `PairingError` for a refusal."""
        fields = dict(message)
        attempt = fields.pop("attempt", None)
        with self._changed:
            if fields.get("type") == "hello":
                return self._begin(fields)
            if self._attempt is None or attempt != self._attempt:
                # Of somebody else: the attempt that goes on is not disturbed.
                raise PairingError("attempt: expected that of this window, got another")
            if fields != WAIT:
                self._take(fields)
        self._tell_news()
        return self._wait_for_user() if self._pairing.peer_confirmed else WAIT

    def _take(self, fields: Message) -> None:
        self._check_open()
        try:
            self._pairing.receive(fields)
        finally:
            self._changed.notify_all()
        if fields["type"] == "reveal":
            self._news.append(lambda: self._app.tell_code(self))
        self._settle()

    def _tell_news(self) -> None:
        """Call the application; without the lock, so that it may ask the window."""
        with self._changed:
            news, self._news = self._news, []
        for tell in news:
            tell()

    def _begin(self, fields: Message) -> Message:
        self._check_open()
        if self._attempt is not None:
            raise PairingError("hello: expected one in each window, got a second")
        self._attempt = secrets.token_hex(16)
        answer = self._pairing.receive(fields)
        assert answer is not None
        assert self.peer is not None
        try:
            check_certificate(self.peer.certificate)
        except ParseError as error:
            self._pairing.refuse()
            raise PairingError(str(error)) from error
        return answer | {"attempt": self._attempt}

    def _wait_for_user(self) -> Message:
        with self._changed:
            self._changed.wait_for(self._is_final, POLL_SECONDS)
            if self.trusted is not None:
                return {"type": "confirm"}
            if self._is_final():
                raise PairingError("expected both users to confirm, got a no")
            return WAIT

    def _settle(self) -> None:
        """Store the peer that both users confirmed, before anybody is told so."""
        if self._pairing.state is State.PAIRED and self.trusted is None:
            assert self.peer is not None
            try:
                self.trusted = trusted = self._app.store.add(self.peer)
            except BaseException:
                self._pairing.state = State.FAILED
                raise
            finally:
                self._changed.notify_all()
            self._news.append(lambda: self._app.tell_paired(trusted))

    def _is_over(self) -> bool:
        return self._app.clock() >= self.deadline

    def _is_final(self) -> bool:
        return self.state in (State.PAIRED, State.FAILED)

    def _check_open(self) -> None:
        if self._is_over():
            raise PairingError("expected an open pairing window, got its end")


class PairingApp:
    """An RGI app by which new devices become trusted, while its user wants it.

    Serve it with `sslconfig`, apart from the app for peers, since it can't ask for
    certificates that nobody knows yet. All of it is refused but for what is asked
    of it by an open window or an invitation that is still good.
    """

    def __init__(
        self,
        identity: Identity,
        store: PeerStore,
        *,
        name: str,
        addresses: Iterable[Address] = (),
        on_code: Callable[[PairingWindow], object] | None = None,
        on_paired: Callable[[Peer], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the app of a device called `name` whose peers find it at `addresses`.

        `on_code` is called with the window when there is a code to show, `on_paired`
        with each new peer, in the thread of a connection: hand it on and return.
        """
        self.me = identity.build_peer(name, addresses)
        self.store = store
        self.sslconfig: dict[str, Any] = {
            "cert_file": identity.path,
            "key_file": identity.path,
            "allow_unauthenticated_clients": True,
        }
        self.clock = clock
        self._on_code = on_code
        self._on_paired = on_paired
        self._lock = threading.Lock()
        self._window: PairingWindow | None = None
        self._failures = 0
        self._pause_until = 0.0
        self._tokens: dict[bytes, float] = {}

    def open(self, seconds: float = WINDOW_SECONDS) -> PairingWindow:
        """Open a window: one device may try once, within `seconds`.

        Raises `PairingError` while another window is open, and after a failed
        attempt until the pause is over.
        """
        with self._lock:
            self._retire()
            left = self._pause_until - self.clock()
            if left > 0:
                raise PairingError(
                    f"expected a pause after {self._failures} failed attempts, "
                    f"got another {left:.0f} s too early"
                )
            self._window = PairingWindow(self, seconds)
            return self._window

    def close(self) -> None:
        """Close the window that is open, if there is one."""
        window = self._window
        if window is not None:
            window.refuse("the window was closed")

    def invite(
        self, addresses: Iterable[Address], seconds: float = INVITATION_SECONDS
    ) -> Invitation:
        """Make an invitation for one device, good for `seconds`.

        `addresses` are where this app is served. Whoever holds the invitation first
        becomes trusted, so it goes to one person over a channel that is private.
        """
        token = secrets.token_bytes(TOKEN_SIZE)
        until = int(time.time() + seconds)
        invitation = Invitation(tuple(addresses), self.me.fingerprint, token, until)
        now = self.clock()
        with self._lock:
            self._tokens = {t: end for t, end in self._tokens.items() if end > now}
            self._tokens[token] = now + seconds
        return invitation

    def revoke_invitations(self) -> None:
        """Let no invitation be good any more."""
        with self._lock:
            self._tokens.clear()

    def __call__(self, request: Any) -> tuple[int, str, dict[str, Any], Any]:
        """Serve one message of a pairing, or the acceptance of an invitation."""
        try:
            message = _read_message(request)
        except ParseError as error:
            return _build_response(400, "Bad Request", _build_refusal(error))
        try:
            if message.get("type") == "accept":
                answer = self._accept(message)
            else:
                answer = self._get_window().answer(message)
        except (ParseError, PairingError) as error:
            return _build_response(403, "Forbidden", _build_refusal(error))
        return _build_response(200, "OK", answer)

    def tell_code(self, window: PairingWindow) -> None:
        """Tell the application that `window` has a code to show."""
        if self._on_code is not None:
            self._on_code(window)

    def tell_paired(self, peer: Peer) -> None:
        """Tell the application that `peer` is trusted now."""
        if self._on_paired is not None:
            self._on_paired(peer)

    def _get_window(self) -> PairingWindow:
        window = self._window
        if window is None:
            raise PairingError("expected an open pairing window, got none")
        return window

    def _retire(self) -> None:
        """Draw the consequences of the last window, if it is over."""
        window = self._window
        if window is None:
            return
        if window.state is State.PAIRED:
            self._failures = 0
        elif window.state is not State.FAILED:
            raise PairingError("expected no open pairing window, got one")
        elif window.attempted:
            self._failures += 1
            self._pause_until = self.clock() + min(2.0**self._failures, MAX_PAUSE)
        self._window = None

    def _accept(self, message: Message) -> Message:
        expected = {"type", "token", "name", "certificate", "addresses"}
        if message.keys() != expected:
            raise ParseError(f"accept: expected the fields {sorted(expected)}")
        peer = parse_peer_fields(message)
        check_certificate(peer.certificate)
        try:
            token = bytes.fromhex(message["token"])
        except (ValueError, TypeError):
            token = b""
        with self._lock:
            end = self._tokens.pop(token, None)
        if end is None or end <= self.clock():
            raise PairingError(
                "invitation: expected one that is still good, got one that was used, "
                "is too old or was revoked"
            )
        self.tell_paired(self.store.add(peer))
        return {"type": "accepted"} | build_peer_fields(self.me)


def _build_refusal(error: Exception) -> Message:
    return {"type": "refuse", "why": str(error)}


def _build_response(
    status: int, reason: str, message: Message
) -> tuple[int, str, dict[str, Any], bytes]:
    return (status, reason, {"content-type": JSON}, _format_json(message))


# --- pairing over HTTP: the client's end ------------------------------------------

Compare = Callable[[str, Peer], bool]
"""Show the code and the peer, who is not trusted yet; the user's yes or no."""


class _Conversation:
    """Messages to one server, whose certificate stays the same throughout."""

    def __init__(self, identity: Identity, address: Address, certificate: bytes):
        sslctx = _build_base_sslctx(identity)
        sslctx.load_verify_locations(cadata=certificate)
        self._client = SSLClient(sslctx, address)
        self._fingerprint = build_fingerprint(certificate)

    def send(self, message: Message) -> Message:
        """Send `message`; the answer. Raises `PairingError` where it is a refusal."""
        # A connection for each: a user may take longer than a server keeps one.
        with _check_pinned(self._client.connect(), self._fingerprint) as connection:
            response = connection.post(
                "/", {"content-type": JSON}, _format_json(message)
            )
            data = b""
            if response.body is not None:
                data = response.body.read(MAX_MESSAGE_SIZE + 1)
        try:
            answer = _parse_json(data)
        except ParseError as error:
            raise PairingError(
                f"expected a pairing server, got {response.status} "
                f"{response.reason}: {error}"
            ) from error
        if response.status != 200:
            raise build_refused_error(answer.get("why"))
        return answer


def pair(
    identity: Identity,
    store: PeerStore,
    address: Address,
    compare: Compare,
    *,
    name: str,
    addresses: Iterable[Address] = (),
    timeout: float = WINDOW_SECONDS,
) -> Peer:
    """Pair with the device whose `PairingApp` listens on `address`; blocks.

    `compare(code, peer)` asks this device's user and returns True for equal codes;
    the peer's user has to say yes too, within `timeout` seconds after that. `name`
    and `addresses` are what the peer stores of this device.

    Returns the peer, then in `store`. Raises `PairingError` where the devices did
    not come to trust each other, and `OSError` where there is no connection.
    """
    certificate = _read_certificate(identity, address, timeout=10.0)
    me = identity.build_peer(name, addresses)
    pairing = Pairing("initiator", me, shown_certificate=certificate)
    conversation = _Conversation(identity, address, certificate)
    answer = conversation.send(pairing.start())
    attempt = {"attempt": answer.pop("attempt", None)}
    reveal = pairing.receive(answer) or {}
    code, peer = pairing.code, pairing.peer
    assert code is not None
    assert peer is not None
    check_certificate(certificate)
    conversation.send(reveal | attempt)
    if compare(code, peer) is not True:
        with suppress(PairingError, OSError):
            conversation.send(pairing.refuse() | attempt)
        raise PairingError("expected equal codes, got this user's no")
    answer = conversation.send(pairing.confirm() | attempt)
    deadline = time.monotonic() + timeout
    while answer == WAIT:
        if time.monotonic() > deadline:
            raise PairingError(f"expected the peer's user to confirm in {timeout} s")
        answer = conversation.send(WAIT | attempt)
    pairing.receive(answer)
    return store.add(peer)


def accept_invitation(
    identity: Identity,
    store: PeerStore,
    invitation: Invitation,
    *,
    name: str,
    addresses: Iterable[Address] = (),
    timeout: float = 10.0,
) -> Peer:
    """Become trusted by the device that made `invitation`, and trust it; blocks.

    The addresses of the invitation are tried in turn, `timeout` seconds each. Nothing
    is sent, not even this device's name, to a server of another fingerprint.

    Returns the peer, then in `store`. Raises `PairingError` for an invitation that
    expired or was used, `TLSError` where only others were found, `OSError` where
    there is no connection.
    """
    check_fresh(invitation, time.time())
    me = identity.build_peer(name, addresses)
    address, certificate = _find_inviter(identity, invitation, timeout)
    check_certificate(certificate)
    accept = {"type": "accept", "token": invitation.token.hex()}
    conversation = _Conversation(identity, address, certificate)
    answer = conversation.send(accept | build_peer_fields(me))
    peer = parse_peer_fields(answer)
    if answer.get("type") != "accepted" or peer.certificate != certificate:
        raise PairingError("expected the inviter's own certificate, got another")
    return store.add(peer)


def _find_inviter(
    identity: Identity, invitation: Invitation, timeout: float
) -> tuple[Address, bytes]:
    failure: OSError = TLSError("expected an address to connect to, got none")
    for address in _expand_all(invitation.addresses):
        try:
            certificate = _read_certificate(identity, address, timeout)
        except OSError as error:
            failure = error
            continue
        fingerprint = build_fingerprint(certificate)
        if fingerprint == invitation.fingerprint:
            return address, certificate
        failure = TLSError(
            f"this side refused {address!r}: expected the fingerprint "
            f"{format_fingerprint(invitation.fingerprint)} of the invitation, "
            f"got {format_fingerprint(fingerprint)}"
        )
    raise failure
