"""Which requests a viewer answers: those of a browser on this machine that knows the token."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Mapping

HOST = "127.0.0.1"
# The page loads only from its own server, and cannot be put into a frame. niivue draws from data: and blob: addresses.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
}


class Access:
    """The token that is the first part of every address, and a ticket that gives it away once.

    The ticket is for the command line of the browser, which other users of the machine can see.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self._ticket = secrets.token_urlsafe(24)
        self._lock = threading.Lock()

    def ticket(self) -> str:
        """The first part of an address that leads to the page once."""
        return self._ticket

    def rest(self, path: str) -> str | None:
        """What follows the token in the path of a request; None where the token is missing or wrong."""
        given, slash, rest = path.removeprefix("/").partition("/")
        known = hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())
        return rest if known and slash else None

    def redeem(self, path: str) -> bool:
        """Whether ``path`` holds the ticket, for the first time."""
        given = path.strip("/").encode("utf-8", "replace")
        with self._lock:
            known = bool(self._ticket) and hmac.compare_digest(given, self._ticket.encode())
            if known:
                self._ticket = ""
        return known


def is_own_host(given: str | None, port: int) -> bool:
    """Whether the header ``Host`` of a request names this server: a name that was bound to another address and now
    leads here (DNS rebinding) is refused."""
    return given in (f"{HOST}:{port}", f"localhost:{port}")
