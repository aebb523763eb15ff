"""Shares of the training rows by the sources' weights: sources that have more than theirs give up rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.dataset.split import smallest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

OVER_WEIGHT = "over the source's dataset.sources[].weight"


def quotas(rows: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """How many rows of each source are trained, so that their numbers are in proportion to the weights.

    The source that has the fewest for its weight gives all that it has. No weight among others counts
    as 1; a source without rows changes nothing; without any weight all rows stay.
    """
    if all(weight is None for weight in weights):
        return list(rows)
    shares = [weight or 1.0 for weight in weights]
    scale = min(
        (count / share for count, share in zip(rows, shares, strict=True) if count), default=0.0
    )
    return [
        min(count, max(1, round(scale * share))) for count, share in zip(rows, shares, strict=True)
    ]


def beyond_quotas(
    trained: "npt.NDArray[np.int64]",
    sources: "npt.NDArray[Any]",
    ids: "npt.NDArray[Any]",
    weights: Sequence[float | None],
) -> "npt.NDArray[np.int64]":
    """Positions of the training rows to leave out; rows with the smallest ids (hashes) stay.

    `sources` and `ids` have an entry for every row read.
    """
    import numpy as np

    own = [trained[sources[trained] == number] for number in range(len(weights))]
    kept = quotas([len(rows) for rows in own], weights)
    beyond = [rows[~smallest(ids[rows], limit)] for rows, limit in zip(own, kept, strict=True)]
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *beyond]))
