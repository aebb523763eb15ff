"""The stack's Prefect API, as the watchdog and the status ask it: JSON over HTTP, without importing Prefect."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from tasks.errors import ServerAway, StageFailed

Json = dict[str, Any]
PAGE = 200
"""Prefect's own limit of one answer."""
DELETED_AT_ONCE = 50
"""Prefect's limit of one deletion."""


@dataclass(frozen=True)
class PrefectApi:
    """A client that holds nothing between two questions: a server that was away is asked again."""

    url: str
    password: str = ""
    """`user:password`, where the server asks for it."""
    timeout_seconds: float = 20.0

    @classmethod
    def of(
        cls, environ: Mapping[str, str], url: str | None = None, *, timeout_seconds: float = 20.0
    ) -> "PrefectApi":
        """The API that the environment of a client names, or the one at `url` with its password."""
        password = environ.get("PREFECT_API_AUTH_STRING") or environ.get(
            "PREFECT_SERVER_API_AUTH_STRING", ""
        )
        return cls(url or environ["PREFECT_API_URL"], password, timeout_seconds)

    def ask(self, method: str, path: str, body: Json | None = None) -> Any:
        """One request. Raises: ServerAway when it is not answered, StageFailed when it is refused."""
        headers = {"Content-Type": "application/json"}
        if self.password:
            headers["Authorization"] = f"Basic {base64.b64encode(self.password.encode()).decode()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}{path}", data=data, headers=headers, method=method
        )
        # Always loopback: a proxy of the user's knows nothing of it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=self.timeout_seconds) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            detail = error.read(500).decode(errors="replace")
            raise StageFailed(
                f"Prefect answered {method} {path} with status {error.code}: {detail}"
            ) from None
        except OSError as error:
            raise ServerAway(
                f"Prefect does not answer {method} {path}: {getattr(error, 'reason', error)}"
            ) from None
        return json.loads(text) if text else None

    def flow_runs(self, where: Json) -> list[Json]:
        """All flow runs that the filter finds, oldest first."""
        return list(self.each_flow_run(where))

    def each_flow_run(self, where: Json) -> Iterator[Json]:
        """The same, where there may be more than memory is for: no more than a page of them is held."""
        for offset in count(0, PAGE):
            page = self.ask(
                "POST",
                "/flow_runs/filter",
                {"flow_runs": where, "sort": "START_TIME_ASC", "limit": PAGE, "offset": offset},
            )
            yield from page
            if len(page) < PAGE:
                return

    def delete_flow_runs(self, ids: list[str]) -> int:
        """How many of them there were, and are no more."""
        gone = 0
        for start in range(0, len(ids), DELETED_AT_ONCE):
            some = {"id": {"any_": ids[start : start + DELETED_AT_ONCE]}}
            done = self.ask("POST", "/flow_runs/bulk_delete", {"flow_runs": some})
            gone += len(done["deleted"])
        return gone

    def end_flow_run(self, run_id: str, kind: str, message: str) -> None:
        """Give a run a final state, whatever the rules of its transitions say."""
        state = {"type": kind, "name": kind.capitalize(), "message": message}
        self.ask("POST", f"/flow_runs/{run_id}/set_state", {"state": state, "force": True})

    def workers(self, pool: str) -> list[Json] | None:
        """The workers of a pool, as far as Prefect remembers them; None where there is no such pool."""
        try:
            return list(self.ask("POST", f"/work_pools/{pool}/workers/filter", {}))
        except StageFailed as error:
            if "status 404" not in str(error):
                raise
            return None


def utc(text: str) -> datetime:
    """Prefect's times; without a zone they are UTC."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=UTC)
