"""A throw-away PKI for tests of TLS, with every certificate that has to be refused.

`TempPKI` is made in some 10 ms, holds two sides (server and client, each with a CA
of its own) in a private temporary directory, and removes it at the end::

    with TempPKI() as pki:
        server = TempSSLServer(pki, address, None, app)
        client = SSLClient(pki.client_sslconfig, server.address)
        for case in pki.CLIENT_CASES:
            bad = SSLClient(pki.client_sslconfig_for(case), server.address)
            assert_rejected(bad, by="server")

The certificates are trustme's: EC keys, valid in OpenSSL's strict mode. They are not
for anything but tests.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from degu.certificate import (
    build_certificate,
    build_device_extensions,
    build_name,
    format_key,
    format_pem,
    make_key,
    parse_key,
    parse_pem,
)
from degu.errors import EmptyHeadError, UnderFlowError, shown
from degu.tls import who_refused

if TYPE_CHECKING:
    import trustme

__all__ = ["TempPKI", "assert_rejected"]

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
"""What a server's certificate names, so that host names can be checked in tests."""

WRONG_HOST = "wrong-host.test"

VALIDITY = timedelta(days=3650)
PAST = timedelta(days=1)
"""How far from now the dates are that must not match: more than any clock's error."""


class TempPKI:
    """Two CAs and their certificates in a temporary directory, as sslconfig dicts.

    `hosts` (names and IP literals) is what the server's certificate is for: by
    default the loopback addresses and ``localhost``, which is also the name that
    `SSLClient` checks on a Unix socket. So `check_hostname` stays on. `folder` is where
    to make the directory, by default where the system keeps temporary files.

    The directory (mode 0700, files 0600) goes with `close`, at the end of a ``with``,
    when the object is collected, or when the process ends; only in the process that
    made it. Safe to share between threads. Raises `ImportError` without trustme.
    """

    SERVER_CASES: ClassVar = (
        "expired",
        "not_yet_valid",
        "wrong_host",
        "wrong_ca",
        "self_signed",
        "revoked",
    )
    """Server certificates that `client_sslconfig` refuses."""

    CLIENT_CASES: ClassVar = (
        "no_certificate",
        "expired",
        "not_yet_valid",
        "wrong_ca",
        "self_signed",
        "revoked",
    )
    """Client certificates that `server_sslconfig` refuses."""

    def __init__(
        self,
        *,
        hosts: tuple[str, ...] = LOOPBACK_HOSTS,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        _import_trustme()
        self.path = tempfile.mkdtemp(prefix="TempPKI.", dir=folder)
        """The directory (absolute path, `str`)."""
        self._finalizer = weakref.finalize(self, _remove, self.path, os.getpid())
        try:
            self._server = _Authority(self.path, "server", hosts)
            self._client = _Authority(self.path, "client", ("client.test",))
        except BaseException:
            self.close()
            raise

    @property
    def server_ca(self) -> trustme.CA:
        """The CA of servers, to issue more of them with `trustme.CA.issue_cert`."""
        return self._server.ca

    @property
    def client_ca(self) -> trustme.CA:
        """The CA of clients, to issue more of them with `trustme.CA.issue_cert`."""
        return self._client.ca

    @property
    def server_sslconfig(self) -> dict[str, Any]:
        """A server that requires a client certificate (a fresh dict)."""
        return self.server_sslconfig_for("valid")

    @property
    def client_sslconfig(self) -> dict[str, Any]:
        """A client that shows a certificate (a fresh dict)."""
        return self.client_sslconfig_for("valid")

    @property
    def anonymous_server_sslconfig(self) -> dict[str, Any]:
        """A server that lets everybody in (a fresh dict)."""
        return self.anonymous_server_sslconfig_for("valid")

    @property
    def anonymous_client_sslconfig(self) -> dict[str, Any]:
        """A client without a certificate (a fresh dict)."""
        return self.client_sslconfig_for("no_certificate")

    def server_sslconfig_for(self, case: str) -> dict[str, Any]:
        """Like `server_sslconfig`, with the certificate of a `case`.

        `case` is one of `SERVER_CASES`, or ``'valid'`` for the control; anything
        else raises `ValueError`.
        """
        _check_case(case, ("valid", *self.SERVER_CASES))
        return {"ca_file": self._client.ca_file, **self._server.files_for(case)}

    def anonymous_server_sslconfig_for(self, case: str) -> dict[str, Any]:
        """Like `anonymous_server_sslconfig`, with the certificate of a `case`."""
        _check_case(case, ("valid", *self.SERVER_CASES))
        return {
            "allow_unauthenticated_clients": True,
            **self._server.files_for(case),
        }

    def client_sslconfig_for(self, case: str) -> dict[str, Any]:
        """Like `client_sslconfig`, with the certificate of a `case`.

        `case` is one of `CLIENT_CASES`, or ``'valid'`` for the control; anything
        else raises `ValueError`.
        """
        _check_case(case, ("valid", *self.CLIENT_CASES))
        files = {} if case == "no_certificate" else self._client.files_for(case)
        return {"ca_file": self._server.ca_file, "check_hostname": True, **files}

    def close(self) -> None:
        """Remove the directory; running servers and clients have read their files."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TempPKI({self.path!r})"


def _import_trustme() -> None:
    try:
        import trustme  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "TempPKI needs the package trustme: pip install 'degu[testing]'"
        ) from error


def _remove(path: str, pid: int) -> None:
    # A forked child has a copy of the object, and must leave the parent its files.
    if os.getpid() == pid:
        shutil.rmtree(path, ignore_errors=True)


def _check_case(case: str, known: tuple[str, ...]) -> None:
    if case not in known:
        raise ValueError(f"case: expected one of {', '.join(known)}, got {shown(case)}")


class _Files(NamedTuple):
    cert_file: str
    key_file: str


class _Authority:
    """One side's CA, and a certificate for each case."""

    def __init__(self, path: str, role: str, hosts: tuple[str, ...]) -> None:
        import trustme

        self._path = path
        self._role = role
        self._hosts = hosts
        self._lock = threading.Lock()
        self._issued: dict[str, _Files] = {}
        self.ca = trustme.CA(
            organization_name="Degu TempPKI", organization_unit_name=f"{role} CA"
        )
        self._issue("valid")
        # A server reads its ca_file once: what is to be revoked is so from the start.
        revoked = self._issue("revoked")
        self.ca_file = self._write(
            "ca", self.ca.cert_pem.bytes() + _build_crl(self.ca, revoked)
        )

    def files_for(self, case: str) -> dict[str, str]:
        """The files of the certificate of a `case`, issued when first wanted."""
        with self._lock:
            if case not in self._issued:
                self._issue(case)
            return self._issued[case]._asdict()

    def _issue(self, case: str) -> bytes:
        key, cert = self._build_certificate(case)
        self._issued[case] = _Files(
            self._write(f"{case}-cert", cert), self._write(f"{case}-key", key)
        )
        return cert

    def _build_certificate(self, case: str) -> tuple[bytes, bytes]:
        import trustme

        hosts = (WRONG_HOST,) if case == "wrong_host" else self._hosts
        not_before, not_after = _build_dates(case)
        if case == "self_signed":
            return _build_self_signed(self._role, hosts)
        ca = trustme.CA() if case == "wrong_ca" else self.ca
        leaf = ca.issue_cert(
            *hosts,
            common_name=self._role,
            organization_name="Degu TempPKI",
            organization_unit_name=case,
            not_before=not_before,
            not_after=not_after,
        )
        return leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes()

    def _write(self, name: str, data: bytes) -> str:
        fd, path = tempfile.mkstemp(".pem", f"{self._role}-{name}-", self._path)
        with open(fd, "wb") as file:
            file.write(data)
        return path


def _build_dates(case: str) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    if case == "expired":
        return now - VALIDITY, now - PAST
    if case == "not_yet_valid":
        return now + PAST, now + VALIDITY
    return now - PAST, now + VALIDITY


def _build_crl(ca: trustme.CA, *revoked: bytes) -> bytes:
    """Build the PEM of a revocation list for certificates (PEM) of the `ca`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    issuer = parse_pem(ca.cert_pem.bytes())
    key = parse_key(ca.private_key_pem.bytes())
    last_update, next_update = _build_dates("valid")
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(last_update)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(identifier, critical=False)
    )
    for pem in revoked:
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(parse_pem(pem).serial_number)
            .revocation_date(last_update)
            .build()
        )
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def _build_self_signed(role: str, hosts: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Build a key and a certificate (PEM both) that it signed itself."""
    key = make_key()
    extensions = build_device_extensions(key, hosts=hosts)
    certificate = build_certificate(
        build_name(role), key, _build_dates("self_signed"), extensions
    )
    return format_key(key), format_pem(certificate)


# --------------------------------------------------------------------------------------
# assert_rejected

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


def assert_rejected(
    attempt: Any,
    *,
    by: Literal["client", "server"] | None = None,
    match: str | None = None,
    timeout: float = 10.0,
) -> BaseException:
    """Assert that TLS keeps the client out, and return the error that it got.

    `attempt` is a client with a ``connect()`` (as `degu.client.SSLClient`), or a
    callable without arguments that makes one exchange or returns a connection or
    a socket. Such a result is then used for one GET: under TLS 1.3 the client's
    handshake is over before the server has seen its certificate, so a refusal
    comes with the first read. HTTP libraries that wrap errors are seen through.

    `by` is the side that has to refuse (None: either), `match` a regular expression
    to find in the text of the error or of one of its causes, `timeout` (seconds)
    the limit of each wait on a socket. Raises `AssertionError`: the exchange went
    well, failed for another reason (such as nobody listening), or timed out.
    """
    try:
        result = _exchange(attempt, timeout)
    except Exception as error:
        _check_rejection(error, by, match)
        return error
    raise AssertionError(f"expected TLS to reject the client, got {shown(result)}")


def _exchange(attempt: Any, timeout: float) -> object:
    result = attempt.connect() if hasattr(attempt, "connect") else attempt()
    if isinstance(result, socket.socket):
        return _exchange_raw(result, timeout)
    if not hasattr(result, "request"):
        return result
    try:
        return result.request("GET", "/")
    finally:
        result.close()


def _exchange_raw(sock: socket.socket, timeout: float) -> bytes:
    with sock:
        sock.settimeout(timeout)
        with suppress(OSError):
            # A server that has closed already left its reason to be read.
            sock.sendall(REQUEST)
        data = sock.recv(len(REQUEST))
    if not data:
        raise EmptyHeadError("the server closed the connection without an answer")
    return data


def _check_rejection(
    error: BaseException, by: Literal["client", "server"] | None, match: str | None
) -> None:
    causes = list(_causes(error))
    refusers = [who for who in map(who_refused, causes) if who]
    if not refusers or any(isinstance(cause, UnderFlowError) for cause in causes):
        raise AssertionError(
            f"expected TLS to reject the client, got {shown(error)}"
        ) from error
    refuser = "client" if "this side" in refusers else "server"
    if by not in (None, refuser):
        raise AssertionError(
            f"expected the {by} to reject, got a rejection by the {refuser}: {error}"
        ) from error
    texts = [str(cause) for cause in causes]
    if match is not None and not any(re.search(match, text) for text in texts):
        raise AssertionError(
            f"expected an error that matches {match!r}, got {texts}"
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and all errors in it, also where a library hides them."""
    seen: list[BaseException] = []
    pending = [error]
    while pending:
        cause = pending.pop(0)
        if cause in seen:
            continue
        seen.append(cause)
        yield cause
        hidden = (
            cause.__cause__,
            cause.__context__,
            getattr(cause, "reason", None),
            *cause.args,
        )
        pending += [item for item in hidden if isinstance(item, BaseException)]
