"""Headers of every answer, and the check of the Host header.

A page of another site can make its own name point to 127.0.0.1 and then read what a server there answers (DNS
rebinding). Its requests name that site in their Host header, so they are refused.
"""

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    # blob: is the photograph that the user dropped, which the page shows before it is sent.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, names: Collection[str] | None):
        """Args:
        app: answers the requests that are let through.
        names: those that a Host header may have, without the port. None: any.
        """
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._app
        if scope["type"] == "http" and self._names is not None:
            host = Headers(scope=scope).get("host", "")
            name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
            if name.lower() not in self._names:
                what = "This server answers only to the names localhost and 127.0.0.1. Open the address it printed."
                app = JSONResponse({"error": what}, status_code=400)
        await app(scope, receive, send_with_headers)
