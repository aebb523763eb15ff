"""Prefect's server answers programs and its own pages: no page of another site acts for the person who opens it.

Without a password, whoever reaches the API runs code on this machine, and a browser takes any page there. CORS
keeps such a page from reading answers and from most requests, yet not from a body without a content type, nor
from the server's WebSockets. A name of its own that leads here (DNS rebinding) makes a page of another site look
like one of ours. MLflow's server refuses both by itself.
"""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flows.stack.exposure import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_SETTING = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"


def answer_own_pages_only() -> None:
    """Change uvicorn in this process, before Prefect's server starts by it.

    Not where the server asks for a password, which no other site's page has; it may then have any name.
    """
    import uvicorn
    from prefect.settings import get_current_settings

    api = get_current_settings().server.api
    if api.auth_string is not None:
        return
    load = uvicorn.Config.load

    def guarded(config: uvicorn.Config) -> None:
        load(config)
        config.loaded_app = OwnPagesOnly(config.loaded_app, api.cors_allowed_origins)

    uvicorn.Config.load = guarded  # type: ignore[assignment, method-assign]


class OwnPagesOnly:
    """ASGI middleware that refuses what a browser sends for a page of another site."""

    def __init__(self, app: "ASGIApp", origins: str) -> None:
        """`origins`: whose pages are welcome beside the server's own, by commas; `*` for all."""
        self._app = app
        self._origins = {origin.strip().lower() for origin in origins.split(",")}
        self._names = {urlsplit(origin).hostname for origin in self._origins}

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass it on, or answer 403."""
        why = None if scope["type"] == "lifespan" else self._reason_against(_headers(scope))
        if why is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": why[:120]})
        else:
            from starlette.responses import PlainTextResponse

            await PlainTextResponse(why, status_code=403)(scope, receive, send)

    def _reason_against(self, headers: dict[str, str]) -> str | None:
        if "*" in self._origins:
            return None
        host, origin = headers.get("host", "").lower(), headers.get("origin", "").lower()
        if not self._is_known(host):
            return (
                f"This server is not known by the name {host!r}. If it should be, add the address of its "
                f"page to {_SETTING} and start it again."
            )
        # Who is no browser names no origin.
        if not origin or origin in self._origins or origin.partition("://")[2] == host:
            return None
        return (
            f"A page of {origin} may not use this server. If it should, add it to {_SETTING} and start the "
            "server again."
        )

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        # HTTP/1.0 knows no names, and no browser speaks it.
        return not host or (name is not None and (name in self._names or is_loopback(name)))


def _headers(scope: Any) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
