import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.store import MANIFEST, Store, digest, fingerprint

KEY = "a" * 64


def _build(text: str):
    def build(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "data.txt").write_text(text)
        (folder / "card.json").write_text("{}")

    return build


def _must_not_build(folder: Path) -> None:
    raise AssertionError("built although the output is complete")


def test_a_complete_output_is_built_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.publish("dataset", KEY, _build("one"))
    second = store.publish("dataset", KEY, _must_not_build)
    assert (first.reused, second.reused) == (False, True)
    assert (second.path / "deep" / "data.txt").read_text() == "one"


def test_a_large_file_is_hashed_once_and_again_when_it_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.REMEMBERED_FROM_BYTES", 3)
    store = Store(tmp_path / "store")
    published = store.publish("dataset", KEY, _build("one"))
    data = published.path / "deep" / "data.txt"
    written = data.stat()
    hashed = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return digest([])

    monkeypatch.setattr("tasks.hash_memory.file_sha256", count)
    assert store.find("dataset", KEY) is not None
    assert hashed == []

    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    data.write_text("two")
    os.utime(data, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert store.find("dataset", KEY) is None
    assert "data.txt" in hashed


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "deep" / "data.txt").write_text("tampered"),
        lambda folder: (folder / "card.json").unlink(),
        lambda folder: (folder / "stray.txt").write_text("not published"),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text('{"files": '),
        lambda folder: (folder / MANIFEST).write_text("[]"),
    ],
    ids=[
        "changed file",
        "missing file",
        "extra file",
        "no manifest",
        "torn manifest",
        "wrong type",
    ],
)
def test_a_torn_or_tampered_output_is_built_again(tmp_path: Path, harm) -> None:
    store = Store(tmp_path)
    harm(store.publish("dataset", KEY, _build("one")).path)
    assert store.find("dataset", KEY) is None
    again = store.publish("dataset", KEY, _build("two"))
    assert not again.reused
    assert sorted(p.name for p in again.path.rglob("*") if p.is_file()) == [
        "card.json",
        "data.txt",
        MANIFEST,
    ]
    assert (again.path / "deep" / "data.txt").read_text() == "two"


def test_a_failing_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        Store(tmp_path).publish("dataset", KEY, fail)
    assert [p.name for p in (tmp_path / "dataset").iterdir() if p.is_dir()] == []


def test_force_builds_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish("dataset", KEY, _build("one"))
    assert not store.publish("dataset", KEY, _build("two"), force=True).reused
    assert store.find("dataset", KEY) is not None


PUBLISHER = """
import sys, time
from pathlib import Path
from tasks.store import Store
def build(folder):
    print("begun", flush=True)
    for n in range(40):
        (folder / f"{n}.txt").write_text(sys.argv[3] * 20000)
        time.sleep(0.01)
Store(Path(sys.argv[1])).publish("dataset", sys.argv[2], build)
print("published", flush=True)
"""


def _publisher(root: Path, text: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(root), KEY, text], stdout=subprocess.PIPE
    )


def test_sigkill_in_the_middle_of_publishing_leaves_no_half_output_in_use(tmp_path: Path) -> None:
    """Kill at moments spread over the whole publication: never anything between all and nothing."""
    seen = set()
    for n in range(16):
        root = tmp_path / str(n)
        process = _publisher(root, "x")
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(0.03 * n)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        found = Store(root).find("dataset", KEY)
        seen.add(found is not None)
        if found is not None:
            assert len([p for p in found.iterdir() if p.suffix == ".txt"]) == 40
        again = Store(root).publish("dataset", KEY, _build("after the kill"))
        assert again.reused == (found is not None)
        assert Store(root).find("dataset", KEY) is not None
        assert not list((root / "dataset").glob(".*.draft"))
    assert False in seen, "no kill hit the publication: the test shows nothing"


def test_two_processes_that_want_one_output_build_it_once(tmp_path: Path) -> None:
    processes = [_publisher(tmp_path, text) for text in "ab"]
    told = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(told) == [[b"begun", b"published"], [b"published"]]
    found = Store(tmp_path).find("dataset", KEY)
    assert found is not None
    assert len({p.read_text() for p in found.glob("*.txt")}) == 1


def test_a_fingerprint_counts_content_and_not_key_order() -> None:
    one = fingerprint("dataset", 1, {"a": 1, "b": [1, 2]}, {"x": "1"})
    assert one == fingerprint("dataset", 1, {"b": [1, 2], "a": 1}, {"x": "1"})
    others = [
        fingerprint("dataset", 2, {"a": 1, "b": [1, 2]}, {"x": "1"}),
        fingerprint("tokenization", 1, {"a": 1, "b": [1, 2]}, {"x": "1"}),
        fingerprint("dataset", 1, {"a": 1, "b": [2, 1]}, {"x": "1"}),
        fingerprint("dataset", 1, {"a": 1, "b": [1, 2]}, {"x": "2"}),
    ]
    assert len({one, *others}) == 5
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))
