"""What a server that is away does not take is delivered later, in order and once; nobody waits for it."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.late import Late
from tasks.outage import is_outage

ROOT = Path(__file__).resolve().parents[3]


class Server:
    def __init__(self) -> None:
        self.down = False
        self.has: list[str] = []

    def take(self, what: str) -> None:
        if self.down:
            raise ConnectionRefusedError("nobody listens")
        self.has.append(what)


def settled(server: Server, count: int) -> list[str]:
    deadline = time.monotonic() + 60
    while len(server.has) < count:
        assert time.monotonic() < deadline, server.has
        time.sleep(0.01)
    # Nothing comes twice.
    time.sleep(0.1)
    return server.has


def ended() -> None:
    """No thread of a delivery outlives the test."""
    deadline = time.monotonic() + 60
    while any(thread.name == "late" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_outage_delays_what_is_sent_and_nobody_who_sends() -> None:
    server, late = Server(), Late(pause=0.02)
    late.deliver("a", "a", lambda: server.take("a"))
    server.down = True
    began = time.monotonic()
    for name in "bcd":
        late.deliver(name, name, lambda name=name: server.take(name))  # type: ignore[misc]
    late.deliver("c", "c", lambda: server.take("newer c"))
    assert time.monotonic() - began < 1
    time.sleep(0.1)
    assert server.has == ["a"]
    server.down = False
    assert settled(server, 4) == ["a", "b", "d", "newer c"]
    ended()
    # And all over again.
    server.down = True
    late.deliver("e", "e", lambda: server.take("e"))
    server.down = False
    assert settled(server, 5)[-1] == "e"
    ended()


def test_a_refusal_costs_a_warning_and_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    def refuse() -> None:
        asked.append("once")
        raise ValueError("too long a key")

    Late(pause=0.01).deliver("a", "the artifact a", refuse)
    time.sleep(0.1)
    assert asked == ["once"]
    assert "did not take the artifact a" in caplog.text


def test_what_waits_too_long_is_given_up_and_told(caplog: pytest.LogCaptureFixture) -> None:
    server, late = Server(), Late(pause=0.02, longest=0.1)
    server.down = True
    late.deliver("a", "a", lambda: server.take("a"))
    ended()
    server.down = False
    time.sleep(0.1)
    assert server.has == []
    assert "nobody listens" in caplog.text


@pytest.mark.parametrize("back", [True, False])
def test_a_process_does_not_end_before_it_was_delivered_or_too_late(
    tmp_path: Path, back: bool
) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom tasks.late import Late\n"
        "began = time.monotonic()\n"
        "def send():\n"
        f"    if time.monotonic() - began < 0.5 or not {back}: raise ConnectionRefusedError('away')\n"
        "    Path(sys.argv[1]).write_text('delivered')\n"
        "Late(pause=0.05, longest_at_exit=1).deliver('a', 'a', send)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "note")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "note").exists() is back


def test_prefects_own_client_tells_an_outage_that_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.artifacts import create_markdown_artifact
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(Exception) as caught,  # noqa: PT011
    ):
        create_markdown_artifact("text", key="a")
    assert is_outage(caught.value)
