"""A promotion is told at least once, with an id, to whom it concerns; and no secret is told to anybody else."""

import base64
import errno
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.home import Home
from tasks.promotion import notices as notices_module
from tasks.promotion.delivery import signature
from tasks.promotion.notices import Notices, Taken, notices_of
from tasks.promotion.promoting import promote
from tasks.tracking import Tracker


@dataclass
class Receiver:
    """Answers with the given statuses, the last one for ever, and keeps what it was sent."""

    statuses: list[int] = field(default_factory=lambda: [204])
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    here = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {key.lower(): value for key, value in self.headers.items()}
            here.got.append((self.path, headers, body))
            status = here.statuses.pop(0) if len(here.statuses) > 1 else here.statuses[0]
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"{here.url}/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here.url = f"http://127.0.0.1:{server.server_port}"
    yield here
    server.shutdown()
    server.server_close()


def outbox(home: Home, **environ: str) -> Notices:
    return notices_of(home, prefect_api=None, environ=environ)


def waiting(home: Home) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((home.root / "outbox").glob("[0-9]*.json"))]


def fast(notices: Notices) -> Notices:
    deliver = notices.deliver
    object.__setattr__(notices, "deliver", lambda: deliver(sleep=lambda _: None))
    return notices


def test_a_webhook_bears_an_id_and_a_signature_that_its_receiver_can_check(
    own_tracker: Tracker, register: Any, loads: Any, receiver: Receiver
) -> None:
    register(own_tracker, "a", 1)
    secret = "whsec_" + base64.b64encode(b"geheim").decode()
    notices = outbox(
        own_tracker.home,
        LORALINE_WEBHOOKS=f"{receiver.url}/hook?token=geheim",
        LORALINE_WEBHOOK_SECRET=secret,
    )
    moved = promote(own_tracker, "a", "1", reason="why", verify=loads, notices=notices)
    assert moved.waiting == 0
    ((path, headers, body),) = receiver.got
    assert path == "/hook?token=geheim"
    sent = json.loads(body)
    assert sent["type"] == "loraline.promotion"
    assert moved.entry is not None
    assert sent["data"]["champion_to"] == "1"
    assert sent["data"]["hash"] == moved.entry.hash
    assert headers["webhook-id"] == moved.entry.id
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"geheim", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert waiting(own_tracker.home) == []


def test_a_receiver_that_is_down_gets_the_notice_later_with_the_same_id(
    own_tracker: Tracker,
    register: Any,
    loads: Any,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    register(own_tracker, "a", 1)
    receiver.statuses = [503]
    address = f"{receiver.url}/secret-path?token=geheim"
    notices = fast(outbox(own_tracker.home, LORALINE_WEBHOOKS=address))
    moved = promote(own_tracker, "a", "1", reason="why", verify=loads, notices=notices)
    # The promotion itself stands.
    assert moved.version.aliases == ["champion"]
    assert moved.waiting == 1
    assert len(receiver.got) == 3
    (kept,) = waiting(own_tracker.home)
    assert "HTTP status 503" in caplog.text
    for text in (caplog.text, json.dumps(kept)):
        assert "secret-path" not in text
        assert "geheim" not in text
    receiver.statuses = [200]
    assert fast(outbox(own_tracker.home, LORALINE_WEBHOOKS=address)).deliver() == 0
    assert {headers["webhook-id"] for _, headers, _ in receiver.got} == {kept["id"]}
    assert waiting(own_tracker.home) == []
    # Delivered is delivered.
    assert fast(outbox(own_tracker.home, LORALINE_WEBHOOKS=address)).deliver() == 0
    assert len(receiver.got) == 4


def test_one_receiver_that_is_down_costs_the_other_nothing(
    own_tracker: Tracker, register: Any, loads: Any, receiver: Receiver
) -> None:
    register(own_tracker, "a", 1)
    both = f"http://127.0.0.1:9/ {receiver.url}/up"
    notices = fast(outbox(own_tracker.home, LORALINE_WEBHOOKS=both))
    assert promote(own_tracker, "a", "1", reason="why", verify=loads, notices=notices).waiting == 1
    assert [path for path, _, _ in receiver.got] == ["/up"]
    (kept,) = waiting(own_tracker.home)
    assert len(kept["waiting"]) == 1
    fast(outbox(own_tracker.home, LORALINE_WEBHOOKS=both)).deliver()
    assert len(receiver.got) == 1


def test_a_redirect_is_not_followed_with_a_signed_notice(
    own_tracker: Tracker, register: Any, loads: Any, receiver: Receiver
) -> None:
    register(own_tracker, "a", 1)
    receiver.statuses = [302]
    notices = fast(outbox(own_tracker.home, LORALINE_WEBHOOKS=receiver.url))
    assert promote(own_tracker, "a", "1", reason="why", verify=loads, notices=notices).waiting == 1
    assert {path for path, _, _ in receiver.got} == {"/"} or {p for p, _, _ in receiver.got} == {""}


def test_a_user_and_a_password_in_the_address_go_into_the_header_only(
    own_tracker: Tracker, register: Any, loads: Any, receiver: Receiver
) -> None:
    register(own_tracker, "a", 1)
    address = receiver.url.replace("://", "://ada:geheim@") + "/hook"
    notices = outbox(own_tracker.home, LORALINE_WEBHOOKS=address)
    assert promote(own_tracker, "a", "1", reason="why", verify=loads, notices=notices).waiting == 0
    ((_, headers, _),) = receiver.got
    assert headers["authorization"] == "Basic " + base64.b64encode(b"ada:geheim").decode()
    assert "geheim" not in headers["host"]


def test_prefect_gets_one_event_with_the_entry_s_id(
    own_tracker: Tracker, register: Any, loads: Any, receiver: Receiver
) -> None:
    register(own_tracker, "a", 1)
    notices = notices_of(
        own_tracker.home,
        prefect_api=f"{receiver.url}/api",
        environ={"PREFECT_API_AUTH_STRING": "admin:geheim"},
    )
    moved = promote(own_tracker, "a", "1", reason="why", verify=loads, notices=notices)
    ((path, headers, body),) = receiver.got
    (event,) = json.loads(body)
    assert path == "/api/events"
    assert headers["authorization"] == "Basic " + base64.b64encode(b"admin:geheim").decode()
    assert moved.entry is not None
    assert (event["id"], event["event"]) == (moved.entry.id, "loraline.promotion")
    assert event["resource"]["prefect.resource.id"] == "loraline.model.a"
    from prefect.events.schemas.events import Event

    assert Event.model_validate(event).payload["champion_to"] == "1"


def test_a_process_that_knows_no_receiver_leaves_the_notice_to_one_that_does(
    own_tracker: Tracker, register: Any, loads: Any, receiver: Receiver
) -> None:
    """As a shell without LORALINE_WEBHOOKS, and the worker that has them."""
    register(own_tracker, "a", 2)
    shell = outbox(own_tracker.home)
    moved = promote(own_tracker, "a", "1", reason="why", verify=loads, notices=shell)
    assert outbox(own_tracker.home).deliver() == 1
    assert receiver.got == []
    worker = outbox(own_tracker.home, LORALINE_WEBHOOKS=receiver.url)
    assert worker.deliver() == 0
    assert moved.entry is not None
    assert [headers["webhook-id"] for _, headers, _ in receiver.got] == [moved.entry.id]
    assert waiting(own_tracker.home) == []


def test_a_receiver_that_only_another_process_knows_is_told_as_well(
    own_tracker: Tracker, register: Any, loads: Any, receiver: Receiver
) -> None:
    register(own_tracker, "a", 2)
    both = outbox(own_tracker.home, LORALINE_WEBHOOKS=f"{receiver.url}/shell {receiver.url}/worker")
    promote(own_tracker, "a", "1", reason="why", verify=loads, notices=both)
    shell = outbox(own_tracker.home, LORALINE_WEBHOOKS=f"{receiver.url}/shell")
    assert promote(own_tracker, "a", "2", reason="why", verify=loads, notices=shell).waiting == 1
    assert both.deliver() == 0
    assert sorted(path for path, _, _ in receiver.got) == ["/shell"] * 2 + ["/worker"] * 2


def test_a_notice_that_nobody_wanted_goes_in_the_end_without_a_warning(
    own_tracker: Tracker, register: Any, loads: Any, caplog: pytest.LogCaptureFixture
) -> None:
    register(own_tracker, "a", 1)
    promote(own_tracker, "a", "1", reason="why", verify=loads, notices=outbox(own_tracker.home))
    (path,) = (own_tracker.home.root / "outbox").glob("[0-9]*.json")
    notice = json.loads(path.read_text())
    path.write_text(json.dumps({**notice, "occurred": "2020-01-01T00:00:00+00:00"}))
    assert outbox(own_tracker.home).deliver() == 0
    assert waiting(own_tracker.home) == []
    assert "Given up" not in caplog.text


def test_a_file_in_the_outbox_that_is_no_notice_stops_nothing(
    own_tracker: Tracker, register: Any, loads: Any, receiver: Receiver
) -> None:
    register(own_tracker, "a", 1)
    folder = own_tracker.home.root / "outbox"
    folder.mkdir(parents=True)
    (folder / "000000-torn.json").write_text('{"id": ')
    notices = outbox(own_tracker.home, LORALINE_WEBHOOKS=receiver.url)
    promote(own_tracker, "a", "1", reason="why", verify=loads, notices=notices)
    assert len(receiver.got) == 1
    assert (folder / "000000-torn.json").exists()


def test_a_signature_needs_no_secret_to_have_an_id() -> None:
    assert signature("id", 1, b"{}", "") == {"webhook-id": "id", "webhook-timestamp": "1"}


def test_no_file_of_a_home_holds_an_address_s_secret(
    own_tracker: Tracker, register: Any, loads: Any
) -> None:
    register(own_tracker, "a", 1)
    address = "http://127.0.0.1:9/canary-path"
    notices = fast(outbox(own_tracker.home, LORALINE_WEBHOOKS=address))
    promote(own_tracker, "a", "1", reason="why", verify=loads, notices=notices)
    files = [p for p in Path(own_tracker.home.root).rglob("*") if p.is_file()]
    assert len(files) > 2
    assert not [p for p in files if b"canary-path" in p.read_bytes()]


def test_a_secret_that_is_no_base64_is_told_in_words_and_stops_no_promotion(
    own_tracker: Tracker,
    register: Any,
    loads: Any,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register(own_tracker, "a", 1)
    notices = outbox(
        own_tracker.home, LORALINE_WEBHOOKS=receiver.url, LORALINE_WEBHOOK_SECRET="whsec_geheim!"
    )
    assert promote(own_tracker, "a", "1", reason="why", verify=loads, notices=notices).waiting == 1
    assert receiver.got == []
    assert "no base64" in caplog.text
    assert "geheim" not in caplog.text


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_cannot_be_kept_is_sent_once_to_each_while_one_of_them_is_away(
    tmp_path: Path, receiver: Receiver
) -> None:
    """As with a webhook that its owner has deleted: it answers 404 all night."""
    addresses = f"{receiver.url}/a {receiver.url}/b"
    home = Home(tmp_path)
    notices = outbox(home, LORALINE_WEBHOOKS=addresses)
    notice = ("id", "loraline.alert", "2026-01-01T00:00:00+00:00", {"name": "a"})
    receiver.statuses = [404, 200, 404, 404, 200]
    assert [notices.send(*notice) for _ in range(5)] == [False, False, False, True, True]
    assert [path for path, _, _ in receiver.got] == ["/a", "/b", "/a", "/a", "/a"]
    assert notices.is_taken("id")
    assert not notices.is_taken("other")


def test_on_a_full_disk_a_waiting_notice_is_sent_once_to_each_who_takes_it(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_both = outbox(Home(tmp_path), LORALINE_WEBHOOKS=f"http://127.0.0.1:9/ {receiver.url}/up")
    now = datetime.now(UTC).isoformat()
    with_both.keep("1", "id", "loraline.alert", now, {"name": "a"})
    monkeypatch.setattr(notices_module, "write_json", full)
    for _ in range(3):
        assert with_both.deliver(attempts=1) == 1
    assert len(receiver.got) == 1
    # Written down as soon as there is room.
    monkeypatch.undo()
    assert with_both.deliver(attempts=1) == 1
    (kept,) = waiting(Home(tmp_path))
    assert len(kept["waiting"]) == 1
    assert len(receiver.got) == 1


def test_what_was_sent_without_a_disk_is_delivered_by_the_outbox_to_the_others_only(
    tmp_path: Path, receiver: Receiver
) -> None:
    home = Home(tmp_path)
    notices = outbox(home, LORALINE_WEBHOOKS=f"{receiver.url}/a {receiver.url}/b")
    now = datetime.now(UTC).isoformat()
    receiver.statuses = [404, 200]
    assert not notices.send("id", "loraline.alert", now, {"name": "a"})
    notices.keep("1", "id", "loraline.alert", now, {"name": "a"})
    assert notices.deliver(attempts=1) == 0
    assert sorted(path for path, _, _ in receiver.got) == ["/a", "/a", "/b"]


def test_so_many_deliveries_are_remembered_and_no_more() -> None:
    taken = Taken(most=3)
    for number in range(5):
        taken.add(str(number), "a")
    assert [(str(number), "a") in taken for number in range(5)] == [False, False, True, True, True]


def test_a_disk_that_is_full_is_not_filled_with_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import files

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())
