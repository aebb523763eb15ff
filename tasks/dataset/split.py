"""Which rows are trained on and which are only ever evaluated, in ways that later rows cannot change."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tasks.dataset.settings import SplitSettings
from tasks.dataset.spool import moment
from tasks.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

OVER_TEST_LIMIT = "over dataset.split.max_test_rows"
REACHES_INTO_TEST = "older than the test period, in a group that reaches into it"


@dataclass
class Sides:
    """Positions of rows, in the order of the sources."""

    train: "npt.NDArray[np.int64]"
    test: "npt.NDArray[np.int64]"
    dropped: "dict[str, npt.NDArray[np.int64]]"
    """Reason -> positions that are on neither side."""


def on_test_side(
    settings: SplitSettings, *, fractions: "npt.NDArray[Any]", times: "npt.NDArray[Any]"
) -> "npt.NDArray[np.bool_]":
    """Marks the rows that the split gives to the test side, before any is left out.

    By hash, a row's side depends on its group and the salt, so that neither its place, nor new rows,
    nor the run's seed can move it. By time, it depends on when the row was made.

    Raises: DataError when a split by time is asked for and rows have no time.
    """
    import numpy as np

    if not settings.by_time:
        return np.asarray(fractions < settings.test)
    _require_times(times)
    return np.asarray(times >= _cutoff(settings, times))


def divide(
    kept: "npt.NDArray[np.int64]",
    on_test: "npt.NDArray[np.bool_]",
    settings: SplitSettings,
    *,
    ids: "npt.NDArray[Any]",
    groups: "npt.NDArray[Any]",
) -> Sides:
    """Divide the rows at the positions `kept`; the arrays have an entry for every row read.

    `max_test_rows` keeps the test rows with the smallest ids, which are hashes, and leaves the
    others out of training too: a row that is pushed out must not come back as a training row.
    """
    import numpy as np

    dropped = {}
    own = on_test[kept]
    train, test = kept[~own], kept[own]
    if settings.by_time:
        reaching = np.isin(groups[train], groups[test])
        dropped[REACHES_INTO_TEST] = train[reaching]
        train = train[~reaching]
    limit = settings.max_test_rows
    if limit is not None and len(test) > limit:
        # By the row and not by its group: few large groups would stand for all others.
        chosen = smallest(ids[test], limit)
        dropped[OVER_TEST_LIMIT] = test[~chosen]
        test = test[chosen]
    return Sides(train, test, {reason: rows for reason, rows in dropped.items() if len(rows)})


def smallest(ids: "npt.NDArray[Any]", limit: int) -> "npt.NDArray[np.bool_]":
    """Marks the `limit` rows with the smallest ids: ids are hashes, so their order does not matter.

    Of new rows, those with smaller hashes take the places of others: when rows grow by a tenth, so
    does a tenth of the choice change.
    """
    import numpy as np

    chosen = np.zeros(len(ids), dtype=np.bool_)
    chosen[np.argsort(ids, kind="stable")[:limit]] = True
    return chosen


def _require_times(moments: "npt.NDArray[np.float64]") -> None:
    import numpy as np

    missing = int(np.isnan(moments).sum())
    if missing:
        raise DataError(
            f"The split is by time, and {missing:,} of {len(moments):,} rows have no time that can be "
            "read. Name the column that holds it (ISO 8601, such as 2026-03-01T09:30:00Z) as "
            "`time:` of each of dataset.sources, or take dataset.split.after and "
            "newest_days out to split by hash."
        )


def _cutoff(settings: SplitSettings, moments: "npt.NDArray[np.float64]") -> float:
    if settings.after is not None:
        return moment(settings.after)
    assert settings.newest_days is not None
    # From the newest row and not from today: the same rows give the same split.
    return float(moments.max(initial=0.0)) - timedelta(days=settings.newest_days).total_seconds()
