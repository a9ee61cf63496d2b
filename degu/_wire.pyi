# What degu/_wire.pyx compiles. Every other name is that of degu.wire itself.
from collections.abc import Collection, Mapping
from typing import Any

from degu.wire import (
    BODILESS_METHODS,
    CHUNKED,
    FORBIDDEN_TRAILERS,
    LIST_HEADERS,
    METHODS,
    UNTIL_CLOSE,
    Headers,
    check_partial_head,
    check_status,
    format_trailers,
    parse_host,
    parse_target,
    parse_trailers,
)

__all__ = [
    "BODILESS_METHODS",
    "CHUNKED",
    "FORBIDDEN_TRAILERS",
    "LIST_HEADERS",
    "METHODS",
    "UNTIL_CLOSE",
    "Headers",
    "body_framing",
    "build_request",
    "build_response",
    "check_partial_head",
    "check_status",
    "format_chunk_head",
    "format_headers",
    "format_request",
    "format_response",
    "format_trailers",
    "frame_headers",
    "parse_chunk_head",
    "parse_headers",
    "parse_host",
    "parse_request",
    "parse_response",
    "parse_target",
    "parse_trailers",
    "says_close",
]

# --- the twin: signatures and meaning are those of degu.wire

def body_framing(
    headers: Mapping[str, Any], method: str, status: int | None = None
) -> int | str | None: ...
def build_request(
    method: str,
    uri: str,
    headers: Mapping[str, Any],
    body: bytes | bytearray | None,
    host: str,
) -> bytes: ...
def build_response(
    status: int,
    reason: str,
    headers: Mapping[str, Any],
    body: bytes | bytearray | None,
    method: str,
) -> bytes: ...
def format_chunk_head(size: int, extension: str | None = None) -> bytes: ...
def format_headers(headers: Mapping[str, Any]) -> bytes: ...
def format_request(method: str, uri: str, headers: Mapping[str, Any]) -> bytes: ...
def format_response(status: int, reason: str, headers: Mapping[str, Any]) -> bytes: ...
def frame_headers(
    headers: Mapping[str, Any],
    framing: int | str | None,
    method: str,
    status: int | None = None,
) -> Mapping[str, Any]: ...
def parse_chunk_head(line: bytes) -> tuple[int, str | None]: ...
def parse_headers(block: bytes) -> Headers: ...
def parse_request(
    head: bytes,
    methods: Collection[str] = ...,
    scheme: str = "http",
    environ: Mapping[str, Any] = ...,
) -> dict[str, Any]: ...
def parse_response(head: bytes) -> tuple[int, str, Headers]: ...
def says_close(headers: Mapping[str, Any]) -> bool: ...
