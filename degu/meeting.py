"""Where devices meet over HTTP: pairing windows and invitations; the server's end.

`PairingApp` is served on a port of its own, as the one for peers refuses whoever is not
known yet. The messages and the code are those of `degu.pairing`, the client's end is in
`degu.joining`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from degu.address import Address
from degu.certificate import check_certificate
from degu.errors import PairingError, ParseError, shown
from degu.identity import Identity
from degu.invitation import TOKEN_SIZE, Invitation
from degu.pairing import (
    JSON,
    MAX_MESSAGE_SIZE,
    WAIT,
    WINDOW_SECONDS,
    Message,
    Pairing,
    Peer,
    State,
    build_peer_fields,
    build_refusal,
    format_message,
    parse_fields,
    parse_hex,
    parse_message,
    parse_peer_fields,
)
from degu.store import PeerStore

__all__ = ["PairingApp", "PairingWindow"]

INVITATION_SECONDS = 600.0
"""Seconds an invitation is good: time to send it and to have it pasted."""

POLL_SECONDS = 2.0
"""Seconds a server holds a peer that waits for the user, before it has to ask again."""

MAX_PAUSE = 300.0
"""Seconds between windows at most; it doubles with each failed attempt, from 2."""


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
            trusted = self._settle()
        if trusted is not None:
            self._app.on_paired(trusted)

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
        trusted = None
        with self._changed:
            if fields.get("type") == "hello":
                return self._begin(fields)
            if self._attempt is None or attempt != self._attempt:
                # Of somebody else: the attempt that goes on is not disturbed.
                raise PairingError("attempt: expected that of this window, got another")
            if fields != WAIT:
                trusted = self._take(fields)
        # Without the lock, so that the application may ask the window.
        if fields["type"] == "reveal":
            self._app.on_code(self)
        if trusted is not None:
            self._app.on_paired(trusted)
        return self._wait_for_user() if self._pairing.peer_confirmed else WAIT

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

    def _take(self, fields: Message) -> Peer | None:
        self._check_open()
        try:
            self._pairing.receive(fields)
        finally:
            self._changed.notify_all()
        return self._settle()

    def _settle(self) -> Peer | None:
        """Store the peer that both users confirmed, before anybody is told so."""
        if self._pairing.state is not State.PAIRED or self.trusted is not None:
            return None
        assert self.peer is not None
        try:
            self.trusted = self._app.store.add(self.peer)
        except BaseException:
            self._pairing.state = State.FAILED
            raise
        finally:
            self._changed.notify_all()
        return self.trusted

    def _wait_for_user(self) -> Message:
        with self._changed:
            self._changed.wait_for(self._is_final, POLL_SECONDS)
            if self.trusted is not None:
                return {"type": "confirm"}
            if self._is_final():
                raise PairingError("expected both users to confirm, got a no")
            return WAIT

    def _is_final(self) -> bool:
        return self.state.is_final

    def _is_over(self) -> bool:
        return self._app.clock() >= self.deadline

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
            "allow_unauthenticated_clients": True,
        }
        self.on_code = on_code or _ignore
        self.on_paired = on_paired or _ignore
        self.clock = clock
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
            return _build_response(400, "Bad Request", build_refusal(str(error)))
        try:
            return _build_response(200, "OK", self._answer(message))
        except (ParseError, PairingError) as error:
            return _build_response(403, "Forbidden", build_refusal(str(error)))

    def _answer(self, message: Message) -> Message:
        if message.get("type") == "accept":
            return self._accept(message)
        window = self._window
        if window is None:
            raise PairingError("expected an open pairing window, got none")
        return window.answer(message)

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
        _, fields = parse_fields(message)
        token = parse_hex(fields, "token", TOKEN_SIZE)
        peer = parse_peer_fields(fields)
        check_certificate(peer.certificate)
        if peer.certificate == self.me.certificate:
            raise PairingError("invitation: expected another device, got this one")
        known = self.store.get(peer.fingerprint)
        if known is not None and known.name != peer.name:
            # Nothing here proves whose key it is: no guest may rename another device.
            raise PairingError(
                f"invitation: expected the name {shown(known.name)}, under which this "
                f"device is known, got {shown(peer.name)}"
            )
        with self._lock:
            end = self._tokens.pop(token, None)
        if end is None or end <= self.clock():
            raise PairingError(
                "invitation: expected one that is still good, got one that was used, "
                "is too old or was revoked"
            )
        self.on_paired(self.store.add(peer))
        return {"type": "accepted"} | build_peer_fields(self.me)


def _ignore(_: object) -> None:
    """Nobody wants to know."""


def _read_message(request: Any) -> Message:
    if request["method"] != "POST" or request["headers"].get("content-type") != JSON:
        raise ParseError(f"expected a POST of {JSON}")
    body = request["body"]
    return parse_message(b"" if body is None else body.read(MAX_MESSAGE_SIZE + 1))


def _build_response(
    status: int, reason: str, message: Message
) -> tuple[int, str, dict[str, Any], bytes]:
    return (status, reason, {"content-type": JSON}, format_message(message))
