"""What the gate judges by: every model's row statistics on each set of rows, and how rows fall into slices."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.evaluation.aggregates import Array

Reference = Literal["base", "champion"]
Model = Literal["base", "champion", "challenger"]

SUITE_METRIC = "rougeL"
"""What a rule on a suite judges where neither it nor the suite names a metric."""


@dataclass(frozen=True)
class RowSet:
    """Rows that every model answered: the test rows, or a suite's."""

    statistics: Mapping[str, Mapping[str, Array]]
    """Model -> metric -> its statistics, shape (rows, k); `aggregates.value_of` makes values of sums."""
    slices: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    """Column -> each row's label; None belongs to no slice of that column."""
    main_metric: str = SUITE_METRIC

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return max(
            (len(array) for model in self.statistics.values() for array in model.values()),
            default=0,
        )

    def where(self, column: str, label: str) -> "RowSet":
        """The rows of one slice."""
        kept = np.array([found == label for found in self.slices[column]], dtype=bool)
        return RowSet(
            {
                model: {metric: array[kept] for metric, array in metrics.items()}
                for model, metrics in self.statistics.items()
            },
            main_metric=self.main_metric,
        )


@dataclass(frozen=True)
class Evidence:
    """Everything one verdict rests on."""

    test: RowSet
    direction: Mapping[str, int]
    """Metric -> 1 where more is better, -1 where less is; 0 or absent where neither is."""
    suites: Mapping[str, RowSet] = field(default_factory=dict)
    same_answers: Collection[Reference] = ()
    """Models whose every answer to the test rows equals the challenger's, character by character."""
    champion_problem: str | None = None
    """Why there is a champion that could not be scored, as a sentence for a person; None otherwise."""

    @property
    def has_champion(self) -> bool:
        """Whether the champion was scored."""
        return "champion" in self.test.statistics


def statistics_path(scores: Path) -> Path:
    """Where the statistics lie that belong to a file of scores."""
    return scores.with_name(f"{scores.stem}.statistics.parquet")


def write_statistics(path: Path, statistics: Mapping[str, Mapping[str, Array]]) -> None:
    """Write each model's statistics as columns `<model>_<metric>` of fixed-size lists, one line a row."""
    columns = {
        f"{model}_{metric}": pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(array, dtype=np.float64).ravel()), array.shape[1]
        )
        for model, metrics in statistics.items()
        for metric, array in metrics.items()
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_statistics(path: Path, models: Sequence[str]) -> dict[str, dict[str, Array]]:
    """The statistics that `write_statistics` wrote: model -> metric -> shape (rows, k)."""
    table = pq.read_table(path)
    found: dict[str, dict[str, Array]] = {model: {} for model in models}
    for name in table.column_names:
        model, _, metric = name.partition("_")
        if model in found:
            column = table[name].combine_chunks()
            width = column.type.list_size
            values = column.flatten().to_numpy(zero_copy_only=False)
            found[model][metric] = np.asarray(values, dtype=np.float64).reshape(-1, width)
    return found
