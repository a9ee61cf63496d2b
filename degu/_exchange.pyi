# What degu/_exchange.pyx compiles. It has no pure form, as there the methods of a
# socket do it.
import socket
from typing import Any, Self

from degu.wire import Headers

__all__ = ["Records", "exchange_plain", "is_quiet", "recv", "send"]

def recv(sock: socket.socket, size: int) -> bytes: ...
def send(sock: socket.socket, data: bytes | bytearray | memoryview) -> int: ...
def is_quiet(sock: socket.socket) -> bool: ...

class Records:
    def __new__(cls, incoming: Any, outgoing: Any, sslobj: Any) -> Self: ...

def exchange_plain(
    sock: socket.socket, plain: bool, message: bytes, used: bool
) -> tuple[int, str, Headers, bytes] | bytes | int | None: ...
