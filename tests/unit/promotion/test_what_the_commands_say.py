"""`loraline promote` and `loraline rollback` say that they load a version when they do, and not before."""

from collections.abc import Callable

import pytest

from flows.cli import main
from tasks.tracking import Tracker

COMMANDS = [["promote", "absent", "1"], ["rollback", "absent"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda it: it[0])
def test_without_a_reason_nothing_is_opened_and_nothing_is_said_to_load(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(_: object) -> Tracker:
        raise AssertionError("The registry was asked")

    monkeypatch.setattr("tasks.tracking.reachable_tracker", asked)
    assert main([*command, "--reason", " \n"]) == 2
    told = capsys.readouterr().err
    assert "need a reason" in told
    assert "Loading" not in told


@pytest.mark.parametrize("command", COMMANDS, ids=lambda it: it[0])
def test_a_version_that_is_not_there_is_not_said_to_load(
    command: list[str],
    own_tracker: Tracker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tasks.tracking.reachable_tracker", lambda _: own_tracker)
    assert main([*command, "--reason", "it is better"]) == 2
    assert "Loading" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "loaded"), [(["promote", "named", "3"], 3), (["rollback", "named"], 1)]
)
def test_the_version_that_is_loaded_is_named(
    command: list[str],
    loaded: int,
    own_tracker: Tracker,
    register: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register(own_tracker, "named", 3)
    monkeypatch.setattr("tasks.tracking.reachable_tracker", lambda _: own_tracker)
    monkeypatch.setattr("tasks.registration.proving.prove_version", lambda *_: "It loads.")
    for version in ("1", "2"):
        assert main(["promote", "named", version, "--reason", "it is better", "--force"]) == 0
    capsys.readouterr()
    assert main([*command, "--reason", "of today"]) == 0
    assert f"Loading version {loaded} of named in a fresh process" in capsys.readouterr().err
