"""Hand one notice to one receiver: a webhook signed as standardwebhooks.com has it, or Prefect's events."""

import base64
import hashlib
import hmac
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit

TIMEOUT_SECONDS = 10.0
_NOT_NOW = (408, 429, 502, 503, 504)
"""Statuses that are no answer to the notice: a gateway that reaches nobody, a receiver that is too busy."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class TargetFailed(Exception):
    """A receiver did not take a notice; the message holds no address."""

    def __init__(self, why: str, *, worth_retrying: bool = True, is_away: bool = False) -> None:
        super().__init__(why)
        self.worth_retrying = worth_retrying
        self.is_away = is_away
        """Whether another notice would fare no better: nobody answers, or nobody may come just now."""


@dataclass(frozen=True)
class Target:
    """One receiver."""

    name: str
    kind: Literal["prefect", "webhook"]
    url: str
    secret: str = ""
    """Of a webhook: what its signature is made with. Of Prefect: the Authorization header's value."""

    @property
    def shown(self) -> str:
        """Scheme and host: the path, the query and the user may be secrets."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}"

    def send(self, notice: Mapping[str, Any]) -> None:
        """One attempt. Raises: TargetFailed."""
        if self.kind == "prefect":
            body = json.dumps([_event(notice)]).encode()
            headers = {"Authorization": self.secret} if self.secret else {}
            _post(f"{self.url.rstrip('/')}/events", body, headers)
            return
        body = json.dumps(
            {"type": notice["event"], "timestamp": notice["occurred"], "data": notice["entry"]}
        ).encode()
        _post(self.url, body, signature(str(notice["id"]), int(time.time()), body, self.secret))


def webhook_target(url: str, secret: str) -> Target:
    """A webhook, named by its address's hash."""
    name = f"webhook-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    return Target(name, "webhook", url, secret)


def prefect_target(api: str, environ: Mapping[str, str]) -> Target:
    """The event feed of a Prefect server or of Prefect Cloud, with the client's own credentials."""
    if key := environ.get("PREFECT_API_KEY"):
        return Target("prefect", "prefect", api, f"Bearer {key}")
    if password := environ.get("PREFECT_API_AUTH_STRING"):
        return Target(
            "prefect", "prefect", api, f"Basic {base64.b64encode(password.encode()).decode()}"
        )
    return Target("prefect", "prefect", api)


def signature(message_id: str, seconds: int, body: bytes, secret: str) -> dict[str, str]:
    """The headers of a webhook: its id, its time, and with a secret the HMAC-SHA256 over all three."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(seconds)}
    if secret:
        key = _key(secret)
        signed = f"{message_id}.{seconds}.".encode() + body
        digest = hmac.new(key, signed, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def _key(secret: str) -> bytes:
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        # The champion has moved by now: what is wrong here must not end the run that moved it.
        raise TargetFailed(
            "the secret it is signed with begins with whsec_, and what follows is no base64",
            worth_retrying=False,
        ) from None


def _event(notice: Mapping[str, Any]) -> dict[str, Any]:
    """The notice as Prefect's API takes events; a repeated one bears the same id."""
    entry = notice["entry"]
    resource = f"loraline.model.{quote(str(entry['name']), safe='')}"
    return {
        "id": notice["id"],
        "event": notice["event"],
        "occurred": notice["occurred"],
        "resource": {"prefect.resource.id": resource, "prefect.resource.name": entry["name"]},
        "payload": dict(entry),
    }


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A receiver may not send a signed notice on to somebody else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TargetFailed("its address is neither http:// nor https://", worth_retrying=False)
    headers = {"Content-Type": "application/json", "User-Agent": "loraline", **headers}
    if parts.username:
        pair = f"{parts.username}:{parts.password or ''}".encode()
        headers.setdefault("Authorization", f"Basic {base64.b64encode(pair).decode()}")
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if parts.hostname in _LOOPBACK:
        # A proxy of the user's knows nothing of this machine's own servers.
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_SECONDS):
            return
    except urllib.error.HTTPError as error:
        error.close()
        # 4xx says that the notice itself is not wanted now; only these two ask to come back soon.
        again = error.code >= 500 or error.code in (408, 429)
        raise TargetFailed(
            f"HTTP status {error.code}", worth_retrying=again, is_away=error.code in _NOT_NOW
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        # The libraries' words may quote the address.
        reason = getattr(error, "reason", error)
        why = str(getattr(reason, "strerror", None) or type(reason).__name__)
        raise TargetFailed(why, is_away=True) from None
