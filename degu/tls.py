"""An sslconfig becomes an `ssl.SSLContext`; with `degu.transport` all of ``ssl``.

An *sslconfig* is a plain dict, so it can be pickled, stored and shown. Its keys:

- ``cert_file``: PEM file with this side's certificate, then its chain. A server
  needs one, a client may have one.
- ``key_file``: PEM file with the private key, where it is not in ``cert_file``.
- ``ca_file``: PEM file with whom to trust; revocation lists in it are obeyed.
- ``ca_path``: directory of such files, named as by ``openssl rehash``, and looked up
  at each handshake. An empty one trusts nobody yet.
- ``allow_unauthenticated_clients``: servers only; only ``True``, and only without a CA.
- ``check_hostname``: clients only; a bool, ``True`` by default.
- ``minimum_version``: ``'TLSv1.3'`` (by default) or ``'TLSv1.2'``.

Every path is absolute. Contexts start from `ssl.create_default_context`, so they
get stricter as Python does; what is set here only narrows them.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, TypeAlias

from degu.errors import DeguError, EmptyHeadError, SlowPeerError, TLSError, shown
from degu.transport import TLSSocket

__all__ = [
    "PeerCert",
    "SSLConfig",
    "SSLContext",
    "SSLSocket",
    "build_client_sslctx",
    "build_pinned_sslctx",
    "build_server_hostname",
    "build_server_sslctx",
    "build_tls_error",
    "check_client_sslconfig",
    "check_client_sslctx",
    "check_server_sslconfig",
    "check_server_sslctx",
    "explain",
    "handshake",
    "is_plain_http",
    "is_ragged_eof",
    "is_tls_failure",
    "make_client_sslctx",
    "make_server_sslctx",
    "peer_info",
    "read_certificate",
    "read_refusal",
    "who_refused",
    "wrap_client",
    "wrap_server",
    "write_close_notify",
    "write_under_tls",
]

SSLConfig: TypeAlias = Mapping[str, Any]
PeerCert: TypeAlias = dict[str, Any]
SSLContext: TypeAlias = ssl.SSLContext
SSLSocket: TypeAlias = ssl.SSLSocket

COMMON_KEYS = ("cert_file", "key_file", "ca_file", "ca_path", "minimum_version")
SERVER_KEYS = (*COMMON_KEYS, "allow_unauthenticated_clients")
CLIENT_KEYS = (*COMMON_KEYS, "check_hostname")

MINIMUM_VERSIONS = {
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}

TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""With TLS 1.2 allowed: forward-secret AEAD suites only, as TLS 1.3 has no others."""

LONGEST_PATH = 4096
"""Linux's PATH_MAX (characters); no other system's is larger."""

REHASHED_NAME = re.compile(r"[0-9a-f]{8}\.r?[0-9]+")
"""How OpenSSL finds a CA (or, with the ``r``, a CRL) in a `ca_path`."""


# --------------------------------------------------------------------------------------
# sslconfig: checks that touch no context


def check_server_sslconfig(sslconfig: SSLConfig) -> None:
    """Check a server's `sslconfig` without building anything from it.

    Raises `TypeError` or `ValueError`; the message names the key, says what was
    expected and shows what came.
    """
    _check_keys(sslconfig, "server", SERVER_KEYS)
    if "cert_file" not in sslconfig:
        raise ValueError(
            "sslconfig: expected a 'cert_file', as a server has to show a certificate, "
            f"got the keys {shown(sorted(sslconfig))}"
        )
    has_ca = _has_ca(sslconfig)
    if "allow_unauthenticated_clients" not in sslconfig:
        if not has_ca:
            raise ValueError(
                "sslconfig: expected 'ca_file' or 'ca_path' to check clients with, or "
                "'allow_unauthenticated_clients': True to let in everybody, "
                f"got the keys {shown(sorted(sslconfig))}"
            )
        return
    flag = sslconfig["allow_unauthenticated_clients"]
    if flag is not True:
        raise _wrong_value(
            "allow_unauthenticated_clients", "True, or no such key", flag
        )
    if has_ca:
        raise ValueError(
            "sslconfig: expected either 'allow_unauthenticated_clients' or "
            f"'ca_file'/'ca_path', got the keys {shown(sorted(sslconfig))}"
        )


def check_client_sslconfig(sslconfig: SSLConfig) -> None:
    """Check a client's `sslconfig` without building anything from it.

    Raises `TypeError` or `ValueError`, with messages as `check_server_sslconfig`.
    """
    _check_keys(sslconfig, "client", CLIENT_KEYS)
    check_hostname = sslconfig.get("check_hostname", True)
    if not isinstance(check_hostname, bool):
        raise _wrong_type("check_hostname", "True or False", check_hostname)
    if not check_hostname and not _has_ca(sslconfig):
        # Any owner of any certificate of a public CA could be in the middle.
        raise ValueError(
            "sslconfig['check_hostname']: expected True, as there is no 'ca_file' or "
            "'ca_path' and the system's CAs are trusted, got False"
        )


def _check_keys(sslconfig: SSLConfig, side: str, known: tuple[str, ...]) -> None:
    if not isinstance(sslconfig, dict):
        raise TypeError(
            f"sslconfig: expected a dict, got {type(sslconfig).__name__}: "
            f"{shown(sslconfig)}"
        )
    for key in sslconfig:
        if key not in known:
            raise ValueError(
                f"sslconfig: expected only the keys of a {side} "
                f"({', '.join(known)}), got {shown(key)}"
            )
    for key in ("cert_file", "key_file", "ca_file", "ca_path"):
        if key in sslconfig:
            _check_path(key, sslconfig[key])
    if "key_file" in sslconfig and "cert_file" not in sslconfig:
        raise ValueError(
            "sslconfig: expected a 'cert_file' beside 'key_file', "
            f"got the keys {shown(sorted(sslconfig))}"
        )
    _parse_minimum_version(sslconfig)


def _check_path(key: str, value: object) -> None:
    path = _parse_path(key, value)
    if os.path.abspath(path) != path:
        raise _wrong_value(
            key, f"an absolute, normal path like {os.path.abspath(path)!r}", value
        )
    if key == "ca_path":
        if not os.path.isdir(path):
            raise _wrong_value(key, "the path of a directory that exists", value)
        names = os.listdir(path)
        # Of an empty one nobody can think that it trusts somebody.
        if names and not any(map(REHASHED_NAME.fullmatch, names)):
            raise _wrong_value(
                key, "a directory with certificates named by 'openssl rehash'", value
            )
    elif not os.path.isfile(path):
        raise _wrong_value(key, "the path of a file that exists", value)


def _parse_path(key: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise _wrong_type(key, "a path (str or os.PathLike)", value)
    return path


def _get_path(sslconfig: SSLConfig, key: str) -> str | None:
    return _parse_path(key, sslconfig[key]) if key in sslconfig else None


def _has_ca(sslconfig: SSLConfig) -> bool:
    return "ca_file" in sslconfig or "ca_path" in sslconfig


def _parse_minimum_version(sslconfig: SSLConfig) -> ssl.TLSVersion:
    value = sslconfig.get("minimum_version", "TLSv1.3")
    expected = "'TLSv1.3' or 'TLSv1.2'"
    if isinstance(value, ssl.TLSVersion):
        if value in MINIMUM_VERSIONS.values():
            return value
    elif not isinstance(value, str):
        raise _wrong_type("minimum_version", expected, value)
    elif value in MINIMUM_VERSIONS:
        return MINIMUM_VERSIONS[value]
    raise _wrong_value("minimum_version", expected, value)


def _wrong_type(key: str, expected: str, value: object) -> TypeError:
    got = f"{type(value).__name__}: {shown(value)}"
    return TypeError(f"sslconfig[{key!r}]: expected {expected}, got {got}")


def _wrong_value(key: str, expected: str, value: object) -> ValueError:
    # A path is of use only whole, and the system bounds it anyway.
    whole = isinstance(value, str) and len(value) <= LONGEST_PATH
    got = repr(value) if whole else shown(value)
    return ValueError(f"sslconfig[{key!r}]: expected {expected}, got {got}")


# --------------------------------------------------------------------------------------
# sslconfig -> SSLContext


def build_server_sslctx(sslconfig: SSLConfig) -> ssl.SSLContext:
    """Build the context of a server from its `sslconfig` (`dict`).

    Clients have to show a certificate of `ca_file`/`ca_path`, unless
    `allow_unauthenticated_clients` is True. Raises `TypeError` or `ValueError`.
    """
    check_server_sslconfig(sslconfig)
    sslctx = _build_sslctx(ssl.Purpose.CLIENT_AUTH, sslconfig)
    if _has_ca(sslconfig):
        sslctx.verify_mode = ssl.CERT_REQUIRED
    # Degu resumes no session. Two tickets, each with the client's certificate in it,
    # were 0.5 of the 1.3 ms that mutual TLS takes to the first response on loopback.
    sslctx.num_tickets = 0
    return sslctx


def build_client_sslctx(sslconfig: SSLConfig) -> ssl.SSLContext:
    """Build the context of a client from its `sslconfig` (`dict`).

    Servers have to show a certificate of `ca_file`/`ca_path`, or of the system's
    CAs without these, that names the host unless `check_hostname` is False.
    Raises `TypeError` or `ValueError`.
    """
    check_client_sslconfig(sslconfig)
    sslctx = _build_sslctx(ssl.Purpose.SERVER_AUTH, sslconfig)
    sslctx.check_hostname = bool(sslconfig.get("check_hostname", True))
    return sslctx


def build_pinned_sslctx(certificate: bytes) -> ssl.SSLContext:
    """Build a client's context for the one server that owns `certificate` (DER).

    It has to be self-signed and no CA, as a CA could vouch for others; what it says
    of names is not looked at. Raises `ValueError` or `OSError` for no certificate.
    """
    if not certificate:
        # The system's CAs would take the place of what is not there.
        raise ValueError("certificate: expected DER, got none")
    sslctx = _notice_truncation(ssl.create_default_context(cadata=certificate))
    sslctx.minimum_version = ssl.TLSVersion.TLSv1_3
    sslctx.check_hostname = False
    return sslctx


def _build_sslctx(purpose: ssl.Purpose, sslconfig: SSLConfig) -> ssl.SSLContext:
    sslctx = _notice_truncation(_load_trust(purpose, sslconfig))
    sslctx.minimum_version = _parse_minimum_version(sslconfig)
    if sslctx.minimum_version < ssl.TLSVersion.TLSv1_3:
        sslctx.set_ciphers(TLS_1_2_CIPHERS)
    if "cert_file" in sslconfig:
        _load_certificate(sslctx, sslconfig)
    return sslctx


def _notice_truncation(sslctx: ssl.SSLContext) -> ssl.SSLContext:
    """`sslctx`, for which an end without a close_notify is an error.

    Early releases of CPython 3.11 take it for a proper one unless told so.
    """
    sslctx.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return sslctx


def _load_trust(purpose: ssl.Purpose, sslconfig: SSLConfig) -> ssl.SSLContext:
    ca_file = _get_path(sslconfig, "ca_file")
    ca_path = _get_path(sslconfig, "ca_path")
    try:
        sslctx = ssl.create_default_context(purpose, cafile=ca_file, capath=ca_path)
    except OSError as error:
        expected = f"a PEM file with CA certificates ({_reason(error)})"
        raise _wrong_value("ca_file", expected, ca_file) from error
    if ca_file is not None and sslctx.cert_store_stats()["x509"] == 0:
        raise _wrong_value("ca_file", "at least one CA certificate in it", ca_file)
    if sslctx.cert_store_stats()["crl"] > 0:
        # OpenSSL loads a CRL and then ignores it, unless told otherwise.
        sslctx.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return sslctx


def _load_certificate(sslctx: ssl.SSLContext, sslconfig: SSLConfig) -> None:
    cert_file = _parse_path("cert_file", sslconfig["cert_file"])
    key_file = _get_path(sslconfig, "key_file")
    key_name = "cert_file" if key_file is None else "key_file"

    def refuse_to_prompt() -> str:
        # Without a callback OpenSSL asks on the terminal, which a server never has.
        raise _wrong_value(
            key_name, "an unencrypted private key", key_file or cert_file
        )

    try:
        sslctx.load_cert_chain(cert_file, key_file, password=refuse_to_prompt)
    except OSError as error:
        expected = f"a PEM certificate and its private key ({_reason(error)})"
        got = {
            key: sslconfig[key] for key in ("cert_file", "key_file") if key in sslconfig
        }
        raise ValueError(
            f"sslconfig['cert_file'], sslconfig['key_file']: expected {expected}, "
            f"got {got}"
        ) from error


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).replace("_", " ").lower()


# --------------------------------------------------------------------------------------
# Ready contexts


def check_server_sslctx(sslctx: ssl.SSLContext) -> None:
    """Check that `sslctx` can serve: its purpose, and a clear stance on clients.

    Raises `TypeError` for anything but an `ssl.SSLContext`, `ValueError` for one of
    another protocol than ``PROTOCOL_TLS_SERVER`` or with ``CERT_OPTIONAL``. Looks at
    no option bits: which exist, and which are zero, changes with OpenSSL.
    """
    _check_sslctx(sslctx, "server", ssl.PROTOCOL_TLS_SERVER)
    if sslctx.verify_mode == ssl.CERT_OPTIONAL:
        raise ValueError(
            "sslctx: expected verify_mode CERT_REQUIRED (or CERT_NONE, for everybody), "
            "got CERT_OPTIONAL"
        )


def check_client_sslctx(sslctx: ssl.SSLContext) -> None:
    """Check that `sslctx` can be a client's, and verifies the server.

    Raises `TypeError` for anything but an `ssl.SSLContext`, `ValueError` for one of
    another protocol than ``PROTOCOL_TLS_CLIENT`` or without ``CERT_REQUIRED``.
    """
    _check_sslctx(sslctx, "client", ssl.PROTOCOL_TLS_CLIENT)
    if sslctx.verify_mode != ssl.CERT_REQUIRED:
        raise ValueError(
            f"sslctx: expected verify_mode CERT_REQUIRED, got {sslctx.verify_mode.name}"
        )


def _check_sslctx(sslctx: ssl.SSLContext, side: str, protocol: int) -> None:
    if not isinstance(sslctx, ssl.SSLContext):
        raise TypeError(
            f"sslctx: expected an ssl.SSLContext or an sslconfig dict, "
            f"got {type(sslctx).__name__}: {shown(sslctx)}"
        )
    if sslctx.protocol != protocol:
        raise ValueError(
            f"sslctx: expected protocol PROTOCOL_TLS_{side.upper()}, for a {side}, "
            f"got {sslctx.protocol.name}"
        )


def make_server_sslctx(value: ssl.SSLContext | SSLConfig) -> ssl.SSLContext:
    """Make a server's context of an sslconfig, or check that `value` is one."""
    if isinstance(value, Mapping):
        return build_server_sslctx(value)
    check_server_sslctx(value)
    return value


def make_client_sslctx(value: ssl.SSLContext | SSLConfig) -> ssl.SSLContext:
    """Make a client's context of an sslconfig, or check that `value` is one."""
    if isinstance(value, Mapping):
        return build_client_sslctx(value)
    check_client_sslctx(value)
    return value


# --------------------------------------------------------------------------------------
# Connections


def wrap_server(sslctx: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
    """Put TLS on an accepted `sock`, which it takes over; `handshake` comes next."""
    return TLSSocket.wrap(sslctx, sock, server_side=True)


def wrap_client(
    sslctx: ssl.SSLContext, sock: socket.socket, server_hostname: str | None
) -> ssl.SSLSocket:
    """Put TLS on a connected `sock`, which it takes over; `handshake` comes next.

    `server_hostname` is the name or IP literal to send (RFC 6066 §3) and to check;
    None where a context with `check_hostname` False has no name to check. Raises
    `ValueError` for a name with a port, and for None where a name is needed.
    """
    name = build_server_hostname(server_hostname)
    if name is None and sslctx.check_hostname:
        raise ValueError(
            "server_hostname: expected the name to check in the server's certificate, "
            "as check_hostname is True, got None"
        )
    return TLSSocket.wrap(sslctx, sock, server_hostname=name)


def build_server_hostname(host: str | None) -> str | None:
    """Build what a certificate can name from a `host`, the first item of an address.

    The zone of a link-local address means nothing to the peer and goes; so does
    the final dot of a full domain name (RFC 6066 §3). Raises `ValueError` for
    brackets or a port.
    """
    if host is None:
        return None
    name = host.partition("%")[0].removesuffix(".")
    if not name or name.startswith((".", "[")) or (":" in name and not _is_ipv6(name)):
        raise ValueError(
            "server_hostname: expected a host name or an IP literal, without port "
            f"and brackets, got {shown(host)}"
        )
    return name


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        return False
    return True


def handshake(sslsock: ssl.SSLSocket, timeout: float | None) -> None:
    """Do the TLS handshake within `timeout` seconds in all; does not close `sslsock`.

    `timeout` stays set as the timeout of `sslsock`. Raises `TLSError` with a sentence
    of `explain`, `SlowPeerError` past the deadline. Under TLS 1.3 a client is through
    before the server has seen its certificate: a refusal comes with its first read.
    """
    sslsock.settimeout(timeout)
    try:
        sslsock.do_handshake()
    except TimeoutError as error:
        raise SlowPeerError(
            f"expected the TLS handshake to end within {timeout} s, got no answer"
        ) from error
    except OSError as error:
        raise build_tls_error(error) from error


def peer_info(
    sslsock: ssl.SSLSocket,
) -> tuple[tuple[str, str, int] | None, PeerCert | None]:
    """Return `(cipher, peercert)` as the ssl module gives them.

    The cipher is `(name, protocol, secret_bits)`; the certificate the dict of
    `ssl.SSLSocket.getpeercert`, None where the peer showed none.
    """
    return sslsock.cipher(), sslsock.getpeercert()


def read_certificate(sock: socket.socket, timeout: float | None) -> bytes:
    """Read the certificate (DER `bytes`) of the server that `sock` is connected to.

    A look, and nothing else: it is not verified, no HTTP is sent, `sock` is closed.
    Who trusts what was seen makes a new connection with `build_pinned_sslctx`.
    Raises as `handshake`.
    """
    sslctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sslctx.minimum_version = ssl.TLSVersion.TLSv1_3
    sslctx.check_hostname = False
    sslctx.verify_mode = ssl.CERT_NONE
    with sock, wrap_client(sslctx, sock, None) as sslsock:
        handshake(sslsock, timeout)
        certificate = sslsock.getpeercert(True)
        write_close_notify(sslsock)
    if certificate is None:
        raise TLSError("expected a certificate of the server, got none")
    return certificate


def read_refusal(sslsock: ssl.SSLSocket, error: OSError) -> OSError:
    """Return the alert that made a write fail with `error`; `error` without one.

    A server that refuses a certificate closes at once, so a client's write can fail
    before its first read shows why. Call this before giving the connection up: it
    may take bytes off it. Never waits or raises.
    """
    try:
        sslsock.settimeout(0)
        sslsock.recv(1)
    except ssl.SSLError as alert:
        if "_ALERT_" in (alert.reason or ""):
            return alert
    except (OSError, ValueError):
        pass
    return error


def write_close_notify(sslsock: ssl.SSLSocket) -> None:
    """Tell the peer that nothing more comes (RFC 9112 §9.8); never waits or raises.

    Call it before `close`, from the thread that uses the connection: without it
    the peer can't tell an end from a truncation.
    """
    with suppress(OSError, ValueError):
        sslsock.settimeout(0)
        sslsock.unwrap()


def write_under_tls(sslsock: ssl.SSLSocket, data: bytes) -> None:
    """Send `data` in the clear, to a peer that does not speak TLS; never raises."""
    with suppress(OSError):
        socket.socket.sendall(sslsock, data)


# --------------------------------------------------------------------------------------
# Failures

ALERTS = {
    "BAD_CERTIFICATE": "it finds this side's certificate not valid, or not yet",
    "CERTIFICATE_EXPIRED": "this side's certificate has expired",
    "CERTIFICATE_REQUIRED": "it requires a client certificate, and none was sent",
    "CERTIFICATE_REVOKED": "this side's certificate was revoked",
    "CERTIFICATE_UNKNOWN": "it does not accept this side's certificate",
    "DECRYPT_ERROR": "it could not verify a signature of this side",
    "HANDSHAKE_FAILURE": "it requires something that this side did not offer, "
    "perhaps a client certificate",
    "INTERNAL_ERROR": "it had an error of its own",
    "PROTOCOL_VERSION": "it does not accept the TLS versions of this side",
    "UNKNOWN_CA": "this side's certificate is not of a CA that it trusts",
    "UNRECOGNIZED_NAME": "it does not serve this host name",
    "UNSUPPORTED_CERTIFICATE": "this side's certificate is not made for this purpose",
}
"""The alert that a peer sent (RFC 8446 §6.2): why it refused."""

REASONS = {
    "HTTP_REQUEST": "the peer sent plain HTTP to a TLS port",
    "HTTPS_PROXY_REQUEST": "the peer sent a plain HTTP CONNECT to a TLS port",
    "WRONG_VERSION_NUMBER": "the peer answered in something that is not TLS, "
    "perhaps plain HTTP",
    "PACKET_LENGTH_TOO_LONG": "the peer answered in something that is not TLS",
    "RECORD_LAYER_FAILURE": "the peer answered in something that is not TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "this side requires a client certificate, "
    "and the peer sent none",
    "UNSUPPORTED_PROTOCOL": "this side does not accept the TLS versions of the peer",
    "VERSION_TOO_LOW": "this side does not accept the TLS versions of the peer",
    "NO_SHARED_CIPHER": "no cipher suite suits both sides (has the server's context "
    "a certificate?)",
}
"""What OpenSSL noticed on this side."""


def explain(error: OSError) -> str:
    """Return a sentence for a failed handshake or read: which side refused, and why."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            "this side refused the peer's certificate: certificate verify failed: "
            f"{error.verify_message.rstrip('.')}"
        )
    if is_ragged_eof(error) or isinstance(error, ssl.SSLZeroReturnError):
        return "the peer closed the connection without completing the TLS handshake"
    if isinstance(error, ConnectionError):
        return f"the peer broke the connection off ({error.strerror})"
    if isinstance(error, TimeoutError):
        return "the peer did not answer in time"
    return _explain_reason(error)


def _explain_reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or ""
    alert = reason.partition("_ALERT_")[2]
    if alert:
        why = ALERTS.get(alert, alert.replace("_", " ").lower())
        return f"the peer refused the connection: {why}"
    return REASONS.get(reason, f"TLS failed: {_reason(error)}")


def build_tls_error(error: OSError) -> TLSError:
    """Build the `TLSError` to raise from `error`."""
    return TLSError(explain(error))


def who_refused(error: BaseException) -> Literal["this side", "the peer"] | None:
    """Tell which side ended a connection over TLS; None where that is not the reason.

    A peer may refuse without a word, so a connection that it broke off counts;
    one that nobody accepted, or a silence, does not.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return "this side"
    if isinstance(error, TimeoutError | ConnectionRefusedError):
        return None
    if isinstance(error, DeguError):
        # The others say what became of the connection; who did it is in their cause.
        return "the peer" if isinstance(error, EmptyHeadError) else None
    reason = getattr(error, "reason", None) or ""
    alerted = isinstance(error, ssl.SSLError) and "_ALERT_" in reason
    broken_off = isinstance(error, ConnectionError) or is_ragged_eof(error)
    return "the peer" if alerted or broken_off else None


def is_tls_failure(error: BaseException) -> bool:
    """Tell whether `error` came from TLS itself, and is not the end of a stream.

    On a client's first read, this is the server that refused its certificate.
    """
    return isinstance(error, ssl.SSLError) and not is_ragged_eof(error)


def is_ragged_eof(error: BaseException) -> bool:
    """Tell whether a read failed because the peer closed without a close_notify.

    Harmless between two messages, where many peers do it; elsewhere a truncation.
    """
    # The same in early releases of CPython 3.11.
    unnamed = getattr(error, "reason", None) == "UNEXPECTED_EOF_WHILE_READING"
    return isinstance(error, ssl.SSLEOFError) or unnamed


def is_plain_http(error: BaseException | None) -> bool:
    """Tell whether a server's handshake failed because the client spoke plain HTTP.

    Takes the `TLSError` of `handshake` as well as its cause.
    """
    if isinstance(error, TLSError):
        error = error.__cause__
    return getattr(error, "reason", None) in ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST")
