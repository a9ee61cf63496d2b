"""Every exception that Degu raises, in one tree; a protocol error knows its status.

.. code-block:: text

    DeguError
    ├── ProtocolError (ValueError)            the peer, or the caller, broke HTTP
    │   ├── ParseError 400                    bytes or text outside its grammar
    │   ├── ForbiddenOriginError 403          a web page of a foreign origin
    │   ├── HeadTimeoutError 408              the head did not arrive in time
    │   ├── ContentTooLargeError 413          a body over its cap
    │   ├── TargetTooLongError 414            a request-target over its cap
    │   ├── UnsupportedMediaTypeError 415     a form in a format that is not read
    │   ├── ExpectationError 417              an Expect that is not 100-continue
    │   ├── MisdirectedError 421              a Host that is not ours
    │   ├── HeadTooLargeError 431             a head over its size or count
    │   ├── UnsupportedError 501              a method or transfer coding not known
    │   └── VersionError 505                  not HTTP/1.1
    ├── PeerError (ConnectionError)           the peer went away or stayed silent
    │   ├── ClosedConnectionError             this connection is closed
    │   ├── EmptyHeadError                    closed before the first byte of a head
    │   ├── UnderFlowError                    a body ended before its length
    │   └── SlowPeerError (TimeoutError)      a wait went over its deadline
    ├── OverFlowError (ValueError)            a source gave more than its length
    ├── ChunkError (ValueError)               a source gave data after its last chunk
    ├── BodyClosedError (ValueError)          a body was used twice
    ├── UnconsumedBodyError (ValueError)      a body has to be read first
    ├── AppError (TypeError, ValueError)      an app broke the RGI
    ├── TLSError (ConnectionError)            a TLS handshake failed, with the reason
    ├── PairingError                          two devices do not trust each other
    ├── PeerFileError (OSError)               a private file can't be used as it is
    └── StartError (RuntimeError)             an embedded server did not start
        ├── StartTimeoutError (TimeoutError)  it neither served nor failed in time
        └── DiedError                         it ended without a word; knows exitcode

A class exists only where some caller would act differently; everything else
is a difference of message.
"""

from __future__ import annotations

__all__ = [
    "AppError",
    "BodyClosedError",
    "ChunkError",
    "ClosedConnectionError",
    "ContentTooLargeError",
    "DeguError",
    "DiedError",
    "EmptyHeadError",
    "ExpectationError",
    "ForbiddenOriginError",
    "HeadTimeoutError",
    "HeadTooLargeError",
    "MisdirectedError",
    "OverFlowError",
    "PairingError",
    "ParseError",
    "PeerError",
    "PeerFileError",
    "ProtocolError",
    "SlowPeerError",
    "StartError",
    "StartTimeoutError",
    "TLSError",
    "TargetTooLongError",
    "UnconsumedBodyError",
    "UnderFlowError",
    "UnsupportedError",
    "UnsupportedMediaTypeError",
    "VersionError",
    "shown",
]

SHOWN_LENGTH = 80
"""How much of an offending value an error message shows (characters of its repr)."""


def shown(value: object) -> str:
    """The ``repr`` of `value`, cut so that a message stays readable (`str`)."""
    if isinstance(value, str | bytes | bytearray | list | tuple):
        value = value[: SHOWN_LENGTH + 1]
    text = repr(value)
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 1] + "…"


class DeguError(Exception):
    """The root of the tree."""


class ProtocolError(DeguError, ValueError):
    """HTTP was broken; `status` is what a server answers (RFC 9110 §15)."""

    status = 400
    reason = "Bad Request"


class ParseError(ProtocolError):
    """Bytes or values outside their grammar; the message says whose and where.

    That of HTTP (RFC 9110, RFC 9112), or of what devices tell each other before they
    are trusted: fingerprints, certificates, invitations and messages (`degu.peers`).
    """


class ForbiddenOriginError(ProtocolError):
    """A browser sent this for a page whose origin is not allowed here."""

    status = 403
    reason = "Forbidden"


class HeadTimeoutError(ProtocolError):
    """A head began but was not complete within its deadline (RFC 9110 §15.5.9)."""

    status = 408
    reason = "Request Timeout"


class ContentTooLargeError(ProtocolError):
    """A body, or a part of it read at once, is over its cap (RFC 9110 §15.5.14)."""

    status = 413
    reason = "Content Too Large"


class TargetTooLongError(ProtocolError):
    """A request-target is over its cap (RFC 9110 §15.5.15)."""

    status = 414
    reason = "URI Too Long"


class UnsupportedMediaTypeError(ProtocolError):
    """A body whose media type is not one that is read here (RFC 9110 §15.5.16)."""

    status = 415
    reason = "Unsupported Media Type"


class ExpectationError(ProtocolError):
    """An Expect other than 100-continue (RFC 9110 §10.1.1)."""

    status = 417
    reason = "Expectation Failed"


class MisdirectedError(ProtocolError):
    """A Host, or a target's authority, that this server is not (RFC 9110 §7.4)."""

    status = 421
    reason = "Misdirected Request"


class HeadTooLargeError(ProtocolError):
    """A head over its size or its number of fields (RFC 6585 §5)."""

    status = 431
    reason = "Request Header Fields Too Large"


class UnsupportedError(ProtocolError):
    """A method or a transfer coding that is not implemented (RFC 9110 §15.6.2)."""

    status = 501
    reason = "Not Implemented"


class VersionError(ProtocolError):
    """A well-formed version other than HTTP/1.1 (RFC 9110 §15.6.6)."""

    status = 505
    reason = "HTTP Version Not Supported"


class PeerError(DeguError, ConnectionError):
    """The peer went away, or did not keep up; the connection is of no more use."""


class ClosedConnectionError(PeerError):
    """The connection was closed before."""


class EmptyHeadError(PeerError):
    """The peer closed the connection where a head should have begun."""


class UnderFlowError(PeerError):
    """A body ended early: `received` of `expected` bytes came.

    `expected` is None where the body does not state its length (chunked).
    """

    def __init__(self, received: int, expected: int | None) -> None:
        whole = "an unstated number of" if expected is None else str(expected)
        super().__init__(f"the body ended after {received} of {whole} bytes")
        self.received = received
        self.expected = expected


class SlowPeerError(PeerError, TimeoutError):
    """The peer did not send or take bytes within the deadline."""


class OverFlowError(DeguError, ValueError):
    """A body's source gave `received` bytes where its length says `expected`."""

    def __init__(self, received: int, expected: int) -> None:
        super().__init__(f"the source gave {received} bytes, its length is {expected}")
        self.received = received
        self.expected = expected


class ChunkError(DeguError, ValueError):
    """A source of chunks gave something after its last, empty chunk."""


class BodyClosedError(DeguError, ValueError):
    """A body can be sent or iterated once; this one was."""


class UnconsumedBodyError(DeguError, ValueError):
    """The body of the last message has to be read before the next exchange."""


class AppError(DeguError, TypeError, ValueError):
    """An app (or `on_connect`) broke a rule of the RGI; the message names it."""


class TLSError(DeguError, ConnectionError):
    """A TLS connection could not be made; the message says which side refused."""


class PairingError(DeguError):
    """Two devices do not trust each other (any more), or did not come to."""


class PeerFileError(DeguError, OSError):
    """A file of an identity or a store can't be used; it was left as it is."""


class StartError(DeguError, RuntimeError):
    """An embedded server did not start; the cause is the child's own exception."""


class StartTimeoutError(StartError, TimeoutError):
    """The child gave neither an address nor an error within `start_timeout`."""


class DiedError(StartError):
    """The child ended without a word; `exitcode` is negative for a signal."""

    def __init__(self, message: str, exitcode: int | None) -> None:
        super().__init__(message)
        self.exitcode = exitcode
