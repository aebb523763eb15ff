"""What an evaluation reads is not collected while it lives, however long ago it was made."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.home import Home
from tasks.retention.collecting import collect
from tasks.retention.ledger import entries, newest_success
from tasks.retention.readers import living_readers, reading
from tasks.store import Store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    found = Home(tmp_path / "home")
    found.prepare()
    monkeypatch.setenv("LORALINE_HOME", str(found.root))
    return found


def made_long_ago(home: Home) -> dict[str, Path]:
    """Outputs of two stages and a downloaded adapter."""
    store = Store(home.store)
    found = {}
    for stage in ("dataset", "tokenization"):
        store.publish(stage, stage.ljust(64, "0"), lambda it: (it / "rows").write_text("x"))  # type: ignore[arg-type]
        found[stage] = home.store / stage / stage.ljust(64, "0")
    for adapter in ("judged", "champion"):
        found[adapter] = home.cache / "champions" / adapter
        found[adapter].mkdir(parents=True)
        (found[adapter] / "adapter").write_text("x")
    age(home)
    return found


def age(home: Home) -> None:
    hour = time.time() - 3600
    for path in (*home.store.rglob("*"), *home.cache.rglob("*")):
        os.utime(path, (hour, hour))


def collected(home: Home) -> None:
    # A home without a registry: nothing else is there to keep them.
    collect(home, None)


def test_an_evaluation_keeps_what_it_reads_and_counts_as_no_run_of_the_adapter(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.evaluate_version as flow

    there = made_long_ago(home)
    seen: list[str] = []

    def judge(*_: object, **__: object) -> Any:
        age(home)
        collected(home)
        seen.extend(name for name, path in there.items() if path.exists())
        return SimpleNamespace(gate=None, metrics={}, differences={}, document="report.md")

    def version(sha256: str) -> Any:
        return SimpleNamespace(
            name="a",
            version="1",
            base_sha256="b",
            adapter_sha256=sha256,
            train_rows=None,
            earlier_rows=None,
            folder=Path(),
        )

    recipe: Any = SimpleNamespace(
        name="a",
        base=None,
        model_name="a",
        dataset=None,
        split_salt="",
        tokenization=None,
        training=SimpleNamespace(method="sft"),
        evaluation=None,
    )
    output = {stage: SimpleNamespace(fingerprint=there[stage].name, path=there[stage], rows={"test": 1}) for stage in ("dataset", "tokenization")}  # fmt: skip
    for name, stub in {
        "check_recipe": lambda *_: SimpleNamespace(recipe=recipe),
        "reachable_tracker": lambda _: None,
        "resolve_base": lambda *_: SimpleNamespace(weights_sha256="b"),
        "find_version": lambda *_: version("judged"),
        "find_champion": lambda *_: version("champion"),
        "adapter_of": lambda _: None,
        "prepare_dataset": lambda *_, **__: output["dataset"],
        "tokenize_dataset": lambda *_, **__: output["tokenization"],
        "evaluate_adapter": judge,
    }.items():
        monkeypatch.setattr(flow, name, stub)
    flow.evaluate.fn("recipe.yaml")
    assert seen == ["dataset", "tokenization", "judged", "champion"]
    assert entries(home) == {}
    assert newest_success(home, "a") is None
    # What it kept goes when it is over, and it leaves nothing behind.
    collected(home)
    assert not any(path.exists() for path in there.values())
    assert not list(home.locks.glob("reading-*"))


def test_a_reader_that_was_killed_keeps_nothing(home: Home) -> None:
    there = made_long_ago(home)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tasks.home import Home; from tasks.retention.readers import reading\n"
        "with reading(Home(Path(sys.argv[1]))) as reader:\n"
        "    reader.reads('dataset', sys.argv[2]); print('reads', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(home.root), there["dataset"].name],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reads\n"
        collected(home)
        assert there["dataset"].exists()
        assert not there["tokenization"].exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for lock in home.locks.glob("reading-*"):
        os.utime(lock, (0, 0))
    collected(home)
    assert not there["dataset"].exists()
    assert not list(home.locks.glob("reading-*"))


def test_one_that_begins_just_now_is_not_taken_for_dead(home: Home) -> None:
    with reading(home) as reader:
        assert list(living_readers(home)) == []
        reader.reads("dataset", "k")
        assert [it.outputs for it in living_readers(home)] == [{("dataset", "k")}]
        for lock in home.locks.glob("reading-*"):
            os.utime(lock, (0, 0))
        assert [it.outputs for it in living_readers(home)] == [{("dataset", "k")}]
