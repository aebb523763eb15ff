"""The steps that compare rows, on rows of one kind: they share an instruction, idioms and names."""

from pathlib import Path

import numpy as np
import pytest

from tasks.dataset.cleaning.contamination import Contamination
from tasks.dataset.cleaning.near import NearDuplicates
from tasks.dataset.cleaning.shingles import LENGTH, compared
from tasks.dataset.cleaning_settings import ContaminationSettings, NearDuplicateSettings
from tasks.dataset.reading.python_source import PythonCounts, read_python
from tasks.dataset.rows import Row
from tasks.dataset.source_settings import PythonSource
from tasks.dataset.spool import fraction


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    source = PythonSource(type="python_source", package="stdlib", max_code_characters=250)
    seen: set[str] = set()
    found = []
    for row in read_python(source, Path(), PythonCounts()):
        if row.prompt not in seen:
            seen.add(row.prompt)
            found.append(row)
    return found


def jaccard(first: Row, second: Row) -> float:
    def pieces(row: Row) -> set[str]:
        text = " ".join(compared(row))
        return {text[i : i + LENGTH] for i in range(len(text) - LENGTH + 1)}

    return len(pieces(first) & pieces(second)) / len(pieces(first) | pieces(second))


def test_decontamination_takes_siblings_only(rows: list[Row]) -> None:
    evaluation = [row for row in rows if fraction("quickstart", row.group) < 0.06]
    train = [row for row in rows if fraction("quickstart", row.group) >= 0.06]

    found = [
        (row, match)
        for row, match in zip(
            train, Contamination(ContaminationSettings(), evaluation).matches(train), strict=True
        )
        if match is not None
    ]

    assert len(evaluation) > 100
    assert len(found) < 0.01 * len(train)
    for row, match in found:
        assert match.how == "runs of words" or jaccard(row, evaluation[match.evaluation]) > 0.4


def test_near_duplicates_are_variants_of_one_definition(rows: list[Row]) -> None:
    near = NearDuplicates(NearDuplicateSettings(), len(rows))
    for row in rows:
        near.add(row)
    stands_for = near.clusters()

    copies = np.flatnonzero(stands_for != np.arange(len(rows))).tolist()

    assert 0 < len(copies) < 0.02 * len(rows)
    for i in copies:
        assert jaccard(rows[i], rows[int(stands_for[i])]) > 0.75
