# What degu/_pool.pyx compiles. It has no pure form, as there each connection keeps to
# its thread.
import socket
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["Kept", "Pool"]

class Kept:
    @property
    def handler(self) -> Any: ...
    def leave(self) -> None: ...
    def serve(
        self,
    ) -> tuple[Any, bytes | tuple[str, Any, bytes | None] | BaseException]: ...

class Pool:
    def __init__(
        self,
        app: Callable[[dict[str, Any]], Any],
        methods: Collection[str],
        admitted: Collection[str],
        most: int,
        timeout: float,
    ) -> None: ...
    def enter(
        self, handler: Any, sock: socket.socket, plain: bool, environ: dict[str, Any]
    ) -> Kept: ...
