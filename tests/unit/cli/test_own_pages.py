"""What a browser sends to Prefect's server for pages of other sites."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from flows.own_pages import OwnPagesOnly

OURS = "http://127.0.0.1:4200"
TUNNEL = "http://localhost:14200"


async def _answer(_: Request) -> Response:
    return PlainTextResponse("done")


async def _events(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("done")
    await socket.close()


def client(origins: str = OURS, at: str = OURS) -> TestClient:
    app = Starlette(
        routes=[
            Route("/api", _answer, methods=["GET", "POST"]),
            WebSocketRoute("/api/events", _events),
        ]
    )
    return TestClient(OwnPagesOnly(app, origins), base_url=at)


def named(at: str, headers: dict[str, str]) -> dict[str, str]:
    """For a WebSocket the client takes a name of its own."""
    return {"host": at.partition("://")[2]} | headers


@pytest.mark.parametrize(
    ("at", "headers", "origins"),
    [
        (OURS, {}, OURS),
        (OURS, {"origin": OURS}, OURS),
        (TUNNEL, {"origin": TUNNEL}, OURS),
        ("http://[::1]:4200", {"origin": "http://[::1]:4200"}, OURS),
        (OURS, {"host": ""}, OURS),
        (OURS, {"origin": "https://desk.example.com"}, f"{OURS}, https://desk.example.com"),
        # A proxy passes the name on.
        (
            "http://desk.example.com",
            {"origin": "https://desk.example.com"},
            "https://desk.example.com",
        ),
        ("http://anywhere.example.com", {"origin": "https://evil.example.com"}, "*"),
    ],
)
def test_programs_and_its_own_page_are_answered(
    at: str, headers: dict[str, str], origins: str
) -> None:
    with client(origins, at) as asking:
        assert asking.post("/api", content=b"{}", headers=headers).text == "done"
        with asking.websocket_connect("/api/events", headers=named(at, headers)) as socket:
            assert socket.receive_text() == "done"


@pytest.mark.parametrize(
    ("at", "origin", "told"),
    [
        (OURS, "https://evil.example.com", "https://evil.example.com may not use this server"),
        # A page in a sandbox, or a file.
        (OURS, "null", "A page of null"),
        # Another server on this machine shows pages of its own.
        (OURS, "http://127.0.0.1:8000", "http://127.0.0.1:8000 may not"),
        # A name that leads here.
        ("http://evil.example.com:4200", "http://evil.example.com:4200", "not known by the name"),
        ("http://127.0.0.1.evil.example.com", "", "not known by the name"),
        ("http://evil.example.com:4200", "", "not known by the name"),
    ],
)
def test_a_page_of_another_site_is_refused(at: str, origin: str, told: str) -> None:
    headers = {"origin": origin} if origin else {}
    with client(at=at) as asking:
        answer = asking.post("/api", content=b"{}", headers=headers)
        assert answer.status_code == 403
        assert told in answer.text
        assert "PREFECT_SERVER_CORS_ALLOWED_ORIGINS" in answer.text
        with (
            pytest.raises(WebSocketDisconnect),
            asking.websocket_connect("/api/events", headers=named(at, headers)),
        ):
            pass


def test_a_name_that_is_none_is_refused() -> None:
    with client() as asking:
        assert asking.get("/api", headers={"host": "[::1"}).status_code == 403
