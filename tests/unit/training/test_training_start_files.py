"""What a training takes from the version that it starts from, and leaves for those that start from it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Adapter
from tasks.base import Base
from tasks.errors import DataError, UserError
from tasks.registry import VersionFiles
from tasks.start import FROM_BASE, Beginning, Start
from tasks.training.settings import TrainingSettings
from tasks.training.start_files import refuse_seen_rows, start_job
from tasks.training.work import fingerprint_of, read_result

Train = Callable[..., Adapter]
SHA = "5" * 64


@dataclass(frozen=True)
class KnownStart(Start):
    """A start whose files are here."""

    held: VersionFiles | None = None

    def files(self) -> VersionFiles:
        if self.held is None:
            raise UserError("models:/small/3 is not in the registry.")
        return self.held


def version(folder: Path, **papers: list[int]) -> VersionFiles:
    """Version 3, with lists of row ids among its papers."""
    about = folder / "version" / "about"
    about.mkdir(parents=True)
    for name, ids in papers.items():
        np.save(about / f"{name}.npy", np.array(sorted(ids), dtype=np.uint64))
    metrics = {"loss": 1.5}
    return VersionFiles("small", "3", about.parent / "adapter", SHA, "b" * 64, metrics)


def started(files: VersionFiles | None, sha256: str = SHA) -> Beginning:
    tracker: Any = None
    return Beginning(
        KnownStart("models:/small/3", sha256, "b" * 64, tracker, files),
        asked="a" * 64,
        replayed_rows=5,
    )


@pytest.mark.long
def test_a_training_goes_on_records_its_start_and_is_found_again_without_it(
    train: Train, tmp_path: Path, settings: TrainingSettings
) -> None:
    quick = settings.model_copy(
        update={"training_config": settings.training_config | {"max_steps": 2}}
    )
    first = train(settings=quick)
    files = version(tmp_path, train_rows=[7, 2**63], earlier_rows=[3, 7])
    shutil.copytree(first.folder, files.folder)
    shutil.copytree(first.path, files.fixture, ignore=shutil.ignore_patterns("adapter"))
    files = replace(files, adapter_sha256=first.sha256)
    beginning = started(files, first.sha256)
    second = train(settings=quick, beginning=beginning)
    assert second.fingerprint != first.fingerprint
    result = read_result(second)
    assert result.start is not None
    assert (result.start.uri, result.start.replayed_rows) == ("models:/small/3", 5)
    assert (result.start.recorded_loss, result.asked) == (1.5, "a" * 64)
    assert np.load(second.path / "earlier_rows.npy").tolist() == [3, 7, 2**63]
    text = (second.path / "summary.md").read_text()
    assert "models:/small/3" in text
    assert "5 of 26 are from its dataset" in text
    # The version may be gone from the registry by now.
    again = train(settings=quick, beginning=started(None, first.sha256))
    assert again.reused
    with pytest.raises(UserError, match="not in the registry"):
        train(settings=quick, beginning=started(None))


def test_the_fingerprint_tells_starts_apart_and_leaves_that_of_the_base_as_it_was(
    settings: TrainingSettings, base: Base
) -> None:
    inputs: dict[str, Any] = {"seed": 1, "tokens_fingerprint": "t", "base": base}
    of_base = fingerprint_of(settings, **inputs)
    assert fingerprint_of(settings, **inputs, start=FROM_BASE.start) == of_base
    champion = settings.model_copy(update={"init_from": "champion"})
    assert fingerprint_of(champion, **inputs) == of_base
    one, other = (started(None, sha).start for sha in ("1" * 64, "2" * 64))
    keys = {fingerprint_of(champion, **inputs, start=start) for start in (None, one, other)}
    assert len(keys) == 3
    # Who named it, and what it is called, decides nothing.
    assert one is not None
    renamed = replace(one, uri="models:/other/9")
    assert fingerprint_of(settings, **inputs, start=renamed) in keys


@pytest.mark.parametrize("paper", ["train_rows", "earlier_rows"])
def test_test_rows_that_the_start_or_its_own_start_has_seen_are_refused_before_training(
    paper: str, tmp_path: Path
) -> None:
    test = tmp_path / "test.parquet"
    # A part of a long row bears the row's id.
    ids = [f"{7:016x}", f"{9:016x}#2", f"{11:016x}"]
    pq.write_table(pa.table({"id": ids}), test)
    files = version(tmp_path, **{paper: [9, 100]})
    with pytest.raises(DataError, match=r"1 of 3 test rows .*models:/small/3"):
        refuse_seen_rows(test, files, "refuse")
    refuse_seen_rows(test, files, "drop")


def test_losses_of_a_preference_are_compared_with_nothing(tmp_path: Path) -> None:
    files = version(tmp_path)
    assert start_job(files, "sft").recorded_loss == 1.5
    assert start_job(files, "orpo").recorded_loss is None
