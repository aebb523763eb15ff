"""Which rows are copies of others, decided by hashes alone."""

from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SAME_ROW = "same prompt and answer"
SAME_PROMPT = "same prompt, another answer"
SAME_LABEL = "same name and answer"


def duplicates(
    ids: "npt.NDArray[Any]",
    prompts: "npt.NDArray[Any]",
    labels: "npt.NDArray[Any]",
    fractions: "npt.NDArray[Any]",
    frozen: "npt.NDArray[np.bool_]",
) -> "dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]":
    """Reason -> positions of the rows to leave out, and of those that stay in their place.

    Of each set of copies one stays.

    All arrays given have one entry a row: hashes (label 0: none), where the split puts the row's group,
    and whether the row stays whatever it repeats. Several answers to one prompt are no copies,
    except of rows with a label: one piece of code has one docstring.

    Copies may lie in several groups. The one whose group comes first stays: when one of them is a
    test row, so is the one that is kept, and no copy that arrives later can bring a test row into
    training.
    """
    import numpy as np

    labelled = labels != 0
    codes = np.where(labelled, prompts, 0)
    shared = _repeated(ids) | ((_repeated(codes) | _repeated(labels)) & labelled)
    suspects = np.flatnonzero(shared)
    # By position where groups are equal, so that the first of a group's copies stays.
    order = suspects[np.lexsort((suspects, fractions[suspects]))]
    found = {why: (array("q"), array("q")) for why in (SAME_ROW, SAME_PROMPT, SAME_LABEL)}
    seen: tuple[dict[int, int], dict[int, int], dict[int, int]] = ({}, {}, {})
    for position in order.tolist():
        keys = (int(ids[position]), int(codes[position]), int(labels[position]))
        copy = next(
            (
                (why, known[key])
                for key, known, why in zip(
                    keys, seen, (SAME_ROW, SAME_PROMPT, SAME_LABEL), strict=True
                )
                if key and key in known
            ),
            None,
        )
        if copy is not None and not frozen[position]:
            reason, stays = copy
            found[reason][0].append(position)
            found[reason][1].append(stays)
            continue
        for key, known in zip(keys, seen, strict=True):
            known.setdefault(key, position)
    return {
        reason: (np.array(gone, dtype=np.int64), np.array(stays, dtype=np.int64))
        for reason, (gone, stays) in found.items()
        if gone
    }


def _repeated(values: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)
