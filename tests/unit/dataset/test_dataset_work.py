import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Dataset
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.work import fingerprint_of, prepare_dataset
from tasks.errors import DataError
from tasks.store import Store

COUNT = 200


def settings(split: dict[str, Any] | None = None, **source: Any) -> DatasetSettings:
    chosen = {"type": "jsonl", "path": "data/rows.jsonl", **source}
    return DatasetSettings.model_validate(
        {"sources": [chosen], "split": split if split is not None else {"test": 0.2}}
    )


def write_rows(folder: Path, count: int = COUNT, name: str = "rows.jsonl") -> Path:
    path = folder / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"prompt": f"What is {i} + 1?", "completion": f"It is {i + 1}."} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepare(folder: Path, chosen: DatasetSettings | None = None, **more: Any) -> Dataset:
    arguments = {"salt": "recipe", "recipe_folder": folder, **more}
    return prepare_dataset(Store(folder / "store"), chosen or settings(), **arguments)


def lines(dataset: Dataset, side: str) -> list[dict[str, Any]]:
    text = (dataset.path / f"{side}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_output_holds_both_sides_a_card_and_a_summary(tmp_path: Path) -> None:
    write_rows(tmp_path)

    dataset = prepare(tmp_path)

    train, test = lines(dataset, "train"), lines(dataset, "test")
    assert dataset.rows == {"train": len(train), "test": len(test)}
    assert len(train) + len(test) == COUNT
    assert set(train[0]) == {"id", "group", "messages", "source", "label"}
    assert train[0]["source"].startswith("rows.jsonl:")
    assert train[0]["label"] is None
    assert len({row["id"] for row in train + test}) == COUNT
    summary = (dataset.path / "summary.md").read_text(encoding="utf-8")
    assert f"{len(train)} rows to train on and {len(test)} rows to test with" in summary
    assert "It is " in summary
    assert "prompt/completion: user from prompt, assistant from completion; 1 file" in summary


def test_no_folder_of_this_machine_stands_in_the_output(tmp_path: Path) -> None:
    write_rows(tmp_path)

    dataset = prepare(tmp_path)

    for file in dataset.path.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_a_second_call_reuses_the_output(tmp_path: Path) -> None:
    write_rows(tmp_path)

    first, second = prepare(tmp_path), prepare(tmp_path)

    assert (first.reused, second.reused) == (False, True)
    assert (second.digest, second.rows) == (first.digest, first.rows)
    assert prepare(tmp_path, force=True).reused is False


def test_the_fingerprint_follows_content_and_not_the_place(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    path = write_rows(here)
    write_rows(there)

    def key(folder: Path, chosen: DatasetSettings | None = None, salt: str = "recipe") -> str:
        store = Store(tmp_path / "store")
        return fingerprint_of(chosen or settings(), salt=salt, recipe_folder=folder, store=store)

    original = key(here)
    assert key(there) == original
    assert key(tmp_path, settings(path=str(path))) == original
    assert key(here, salt="other") != original
    assert key(here, settings({"test": 0.3})) != original
    assert key(here, settings({"test": 0.2, "salt": "given"}), salt="recipe") == original
    assert key(here, settings(group="prompt")) != original
    path.write_text(path.read_text().replace("It is 1.", "It is 9."))
    assert key(here) != original


def test_another_salt_is_another_output_and_not_the_stored_one(tmp_path: Path) -> None:
    write_rows(tmp_path)
    store = Store(tmp_path / "store")

    outputs = [prepare(tmp_path, salt=salt) for salt in ("one", "two", "one")]

    assert [it.reused for it in outputs] == [False, False, True]
    assert [it.fingerprint for it in outputs] == [
        fingerprint_of(settings(), salt=salt, recipe_folder=tmp_path, store=store)
        for salt in ("one", "two", "one")
    ]
    assert outputs[0].digest != outputs[1].digest


PREPARER = """
import sys
from pathlib import Path
from tasks.dataset import work
from tasks.dataset.settings import DatasetSettings
from tasks.store import Store
folder, chosen = Path(sys.argv[1]), DatasetSettings.model_validate_json(sys.argv[2])
build = work.build
def told(*arguments, **more):
    print("building", flush=True)
    built = build(*arguments, **more)
    if sys.argv[3] == "stops":
        print("stopped", flush=True)
        sys.stdin.read()
    return built
work.build = told
print("ready", flush=True)
if sys.argv[3] == "waits":
    sys.stdin.readline()
found = work.prepare_dataset(Store(folder / "store"), chosen, salt="recipe", recipe_folder=folder)
print(found.fingerprint, found.digest, flush=True)
"""


def test_eight_processes_prepare_the_same_data_once_though_the_first_is_killed(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path)

    def start(how: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PREPARER, str(tmp_path), settings().model_dump_json(), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    first = start("stops")
    others = [start("waits") for _ in range(7)]
    try:
        assert first.stdout is not None
        # It has written everything and published nothing.
        assert [first.stdout.readline().strip() for _ in range(3)] == [
            "ready",
            "building",
            "stopped",
        ]
        for other in others:
            assert other.stdout is not None
            assert other.stdin is not None
            assert other.stdout.readline() == "ready\n"
            other.stdin.write("go\n")
            other.stdin.flush()
        first.kill()
        told = [other.communicate(timeout=120)[0].splitlines() for other in others]
    finally:
        for process in (first, *others):
            process.kill()
            process.communicate()
    assert [process.returncode for process in others] == [0] * 7
    assert sum("building" in lines for lines in told) == 1
    assert len({lines[-1] for lines in told}) == 1
    mine = prepare(tmp_path)
    assert mine.reused
    assert told[0][-1] == f"{mine.fingerprint} {mine.digest}"
    assert [path.name for path in mine.path.parent.iterdir() if "draft" in path.name] == []


def test_one_changed_byte_makes_another_digest(tmp_path: Path) -> None:
    path = write_rows(tmp_path)
    before = prepare(tmp_path)

    path.write_text(path.read_text().replace("It is 1.", "It is 9."))

    assert prepare(tmp_path).digest != before.digest


def test_old_rows_keep_their_side_when_the_file_grows(tmp_path: Path) -> None:
    write_rows(tmp_path)
    before = prepare(tmp_path)
    write_rows(tmp_path, COUNT * 2)
    after = prepare(tmp_path)

    for side in ("train", "test"):
        old, new = ({row["id"] for row in lines(d, side)} for d in (before, after))
        assert old < new


def test_several_sources_are_read_and_their_bad_rows_shown_together(tmp_path: Path) -> None:
    first, second = write_rows(tmp_path, 3, "a.jsonl"), write_rows(tmp_path, 3, "b.jsonl")
    for path in (first, second):
        path.write_text(path.read_text() + "broken\n")
    sources = [{"type": "jsonl", "path": f"data/{name}.jsonl"} for name in "ab"]

    with pytest.raises(DataError) as caught:
        prepare(tmp_path, DatasetSettings.model_validate({"sources": sources}))

    assert str(caught.value).startswith("2 rows are wrong:")
    assert f"{first}:4: " in str(caught.value)
    assert f"{second}:4: " in str(caught.value)
    assert not list((tmp_path / "store" / "dataset").glob("[!.]*"))


def test_rows_that_two_sources_share_are_kept_once(tmp_path: Path) -> None:
    write_rows(tmp_path, 50, "a.jsonl")
    write_rows(tmp_path, 80, "b.jsonl")
    sources = [{"type": "jsonl", "path": f"data/{name}.jsonl"} for name in "ab"]

    dataset = prepare(
        tmp_path, DatasetSettings.model_validate({"sources": sources, "split": {"test": 0.2}})
    )

    assert sum(dataset.rows.values()) == 80
    card = json.loads((dataset.path / "card.json").read_text())
    assert card["read"] == 130
    assert card["dropped"] == {"same prompt and answer": 50}


@pytest.mark.parametrize(
    ("share", "count", "empty"), [(0.001, 5, "test"), (0.999, 5, "train"), (0.001, 1, "test")]
)
def test_an_empty_side_is_an_error_and_no_fallback(
    tmp_path: Path, share: float, count: int, empty: str
) -> None:
    write_rows(tmp_path, count)

    with pytest.raises(DataError, match=f"no {empty} row: {count} row.*dataset.split.salt"):
        prepare(tmp_path, settings({"test": share}))


def test_a_missing_file_is_an_error_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read dataset\.sources\[\]\.path data/rows\.jsonl"):
        prepare(tmp_path)


def test_a_source_that_changes_while_it_is_read_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.dataset import work

    path = write_rows(tmp_path)
    build = work.build

    def change_and_build(*arguments: Any, **more: Any) -> Any:
        # After its digest was taken.
        path.write_text(path.read_text() + json.dumps({"prompt": "x", "completion": "y"}) + "\n")
        return build(*arguments, **more)

    monkeypatch.setattr(work, "build", change_and_build)

    with pytest.raises(DataError, match="changed while it was read"):
        prepare(tmp_path)
    assert not list((tmp_path / "store" / "dataset").glob("[!.]*"))


def test_a_python_folder_and_a_limit_work_together(tmp_path: Path) -> None:
    names = [f"make_{chr(97 + i)}{chr(97 + j)}" for i in range(6) for j in range(10)]
    for i in range(6):
        functions = (
            f'def {name}():\n    """Return the thing called {name} here."""\n    return "{name}"\n'
            for name in names[10 * i : 10 * i + 10]
        )
        path = tmp_path / "src" / f"module_{i}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(functions))
    source = {"type": "python_source", "path": "src", "max_rows": 40}
    chosen = DatasetSettings.model_validate(
        {
            "sources": [source],
            "split": {"test": 0.4},
            # These functions are written by one template.
            "cleaning": {"near_duplicates": None, "contamination": None},
        }
    )

    dataset = prepare(tmp_path, chosen)

    assert sum(dataset.rows.values()) == 40
    card = json.loads((dataset.path / "card.json").read_text())
    assert card["dropped"] == {"over dataset.sources[].max_rows": 20}
    train, test = lines(dataset, "train"), lines(dataset, "test")
    assert not {row["group"] for row in train} & {row["group"] for row in test}
    assert re.fullmatch(r"make [a-z]{2}", train[0]["label"])


def test_sample_rows_cannot_break_out_of_the_summary(tmp_path: Path) -> None:
    path = write_rows(tmp_path)
    text = path.read_text().replace("It is ", "````\\n# Not a heading\\n````")
    path.write_text(text)

    summary = (prepare(tmp_path).path / "summary.md").read_text()

    assert "`````text\n````\n# Not a heading" in summary


def test_preparing_needs_no_heavy_library(tmp_path: Path) -> None:
    write_rows(tmp_path)
    code = f"""
import sys
from pathlib import Path
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.work import prepare_dataset
from tasks.store import Store
chosen = DatasetSettings.model_validate_json({settings().model_dump_json()!r})
folder = Path({str(tmp_path)!r})
prepare_dataset(Store(folder / "store"), chosen, salt="recipe", recipe_folder=folder)
heavy = ["torch", "transformers", "datasets", "pandas", "pyarrow", "mlflow", "prefect"]
print([name for name in heavy if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"
