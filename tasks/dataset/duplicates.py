"""Which rows are copies of others, decided by hashes alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

SAME_ROW = "same prompt and answer"
SAME_PROMPT = "same prompt, another answer"
SAME_LABEL = "same name and answer"


def duplicates(
    ids: "npt.NDArray[Any]",
    prompts: "npt.NDArray[Any]",
    labels: "npt.NDArray[Any]",
    fractions: "npt.NDArray[Any]",
) -> dict[int, str]:
    """Position -> reason of every row to leave out, so that one of each set of copies stays.

    All arrays have one entry a row: hashes (label 0: none), and where the split puts its group.
    Copies may lie in several groups. The one whose group comes first stays: when one of them is a
    test row, so is the one that is kept, and no copy that arrives later can bring a test row into
    training.
    """
    import numpy as np

    shared = _repeated(ids) | _repeated(prompts) | (_repeated(labels) & (labels != 0))
    suspects = np.flatnonzero(shared)
    # By position where groups are equal, so that the first of a group's copies stays.
    order = suspects[np.lexsort((suspects, fractions[suspects]))]
    found: dict[int, str] = {}
    seen: tuple[set[int], set[int], set[int]] = (set(), set(), set())
    for position in order.tolist():
        keys = (int(ids[position]), int(prompts[position]), int(labels[position]))
        reason = next(
            (
                why
                for key, known, why in zip(
                    keys, seen, (SAME_ROW, SAME_PROMPT, SAME_LABEL), strict=True
                )
                if key in known
            ),
            None,
        )
        if reason is not None:
            found[position] = reason
            continue
        for key, known in zip(keys[:2], seen, strict=False):
            known.add(key)
        if keys[2]:
            seen[2].add(keys[2])
    return found


def first_of_each(
    clusters: "npt.NDArray[Any]", fractions: "npt.NDArray[Any]", positions: "Sequence[int]"
) -> list[int]:
    """Positions to leave out so that one row of each cluster stays, by the rule of `duplicates`."""
    import numpy as np

    places = np.asarray(positions)
    order = np.lexsort((places, fractions[places]))
    _, firsts = np.unique(clusters[order], return_index=True)
    kept = set(order[firsts].tolist())
    return [int(places[i]) for i in range(len(places)) if i not in kept]


def _repeated(values: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)
