"""A Prefect API that holds runs in memory and answers over HTTP, as far as the watchdog asks."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flows.stack.alerts import Alerts
from flows.stack.api import PrefectApi
from tasks.home import Home
from tasks.promotion.notices import notices_of

ABSENT = object()
"""What a question for something unknown is answered with."""


@dataclass
class StandIn:
    """What the server holds, and what it was asked to do."""

    url: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    workers: list[dict[str, Any]] = field(default_factory=list)
    deployments: list[dict[str, Any]] = field(default_factory=list)
    created: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Runs that were asked for, by their idempotency key."""
    events: list[dict[str, Any]] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    pool_type: str = "process"
    deleted_pools: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    """The paths of all questions."""

    @property
    def api(self) -> PrefectApi:
        return PrefectApi(self.url)

    def add(self, kind: str, **more: Any) -> dict[str, Any]:
        """A run in this state."""
        now = datetime.now(UTC).isoformat()
        run = {
            "id": str(uuid4()),
            "name": "brave-run",
            "work_pool_name": "loraline",
            "deployment_id": None,
            "parent_task_run_id": None,
            "parameters": {},
            "tags": [],
            "start_time": None if kind == "PENDING" else now,
            "end_time": now if kind in ("CRASHED", "FAILED", "COMPLETED") else None,
            "expected_start_time": now,
            "state": {"type": kind, "name": kind.capitalize(), "message": ""},
            **more,
        }
        self.runs[run["id"]] = run
        return run

    def answer(self, path: str, body: Any) -> Any:
        self.asked.append(path)
        match path.strip("/").split("/"):
            case ["api", "flow_runs", "filter"]:
                return self._found(body)
            case ["api", "flow_runs", "bulk_delete"]:
                ids = body["flow_runs"]["id"]["any_"]
                return {"deleted": [it for it in ids if self.runs.pop(it, None)]}
            case ["api", "flow_runs", run, "set_state"]:
                assert body["force"] is True
                self.runs[run]["state"] = body["state"]
                self.runs[run]["end_time"] = datetime.now(UTC).isoformat()
                return {}
            case ["api", "work_pools", pool, *_] if pool in self.deleted_pools:
                return ABSENT
            case ["api", "work_pools", _]:
                return {"type": self.pool_type}
            case ["api", "work_pools", _, "workers", "filter"]:
                return self.workers
            case ["api", "deployments", "filter"]:
                return self.deployments
            case ["api", "deployments", identity]:
                return next(d for d in self.deployments if d["id"] == identity)
            case ["api", "deployments", _, "create_flow_run"]:
                return self.created.setdefault(
                    body["idempotency_key"], {"id": str(uuid4()), **body}
                )
            case ["api", "variables", "name", name]:
                return {"value": self.variables[name]} if name in self.variables else ABSENT
            case ["api", "events"]:
                self.events += body
                return None
        raise AssertionError(path)

    def _found(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        where = body["flow_runs"]
        kinds = where.get("state", {}).get("type", {}).get("any_")
        ids = where.get("id", {}).get("any_")
        parents = where.get("parent_flow_run_id", {}).get("any_")
        after = where.get("end_time", {}).get("after_")
        before = where.get("end_time", {}).get("before_")
        due_before = where.get("expected_start_time", {}).get("before_")
        deployments = where.get("deployment_id", {}).get("any_")
        creators = where.get("created_by", {}).get("id_")
        names = where.get("state", {}).get("name", {}).get("any_")
        not_named = where.get("state", {}).get("name", {}).get("not_any_", [])
        found = [
            run
            for run in self.runs.values()
            if (kinds is None or run["state"]["type"] in kinds)
            and run["state"]["name"] not in not_named
            and (ids is None or run["id"] in ids)
            and (parents is None or run.get("parent") in parents)
            and (after is None or (run["end_time"] or "") >= after)
            and (before is None or "" < (run["end_time"] or "") <= before)
            and (due_before is None or run["expected_start_time"] <= due_before)
            and (deployments is None or run["deployment_id"] in deployments)
            and (creators is None or (run.get("created_by") or {}).get("id") in creators)
            and (names is None or run["state"]["name"] in names)
        ]
        if body.get("sort") == "END_TIME_DESC":
            found.sort(key=lambda run: run["end_time"] or "", reverse=True)
        start = body.get("offset", 0)
        return found[start : start + body.get("limit", 200)]


@pytest.fixture
def prefect() -> Iterator[StandIn]:
    """A fresh server."""
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "null")
            answer = stand_in.answer(self.path, body)
            self.send_response(404 if answer is ABSENT else 200)
            self.end_headers()
            self.wfile.write(b"" if answer in (None, ABSENT) else json.dumps(answer).encode())

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}/api"
    yield stand_in
    server.shutdown()
    server.server_close()


@pytest.fixture
def state(tmp_path: Path) -> Home:
    return Home((tmp_path / "home").resolve())


@pytest.fixture
def alerts(state: Home, prefect: Any) -> Alerts:
    """Of a watchdog that first ran yesterday."""
    notices = notices_of(state, prefect_api=prefect.url, environ={})
    return Alerts(state.root / "alerts.json", notices, now=datetime.now(UTC) - timedelta(days=1))
