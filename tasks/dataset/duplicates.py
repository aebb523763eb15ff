"""Which rows are copies of others, decided by hashes alone."""

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
) -> dict[int, str]:
    """Position -> reason of every row to leave out, so that one of each set of copies stays.

    All arrays have one entry a row: hashes (label 0: none), where the split puts the row's group,
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
    found: dict[int, str] = {}
    seen: tuple[set[int], set[int], set[int]] = (set(), set(), set())
    for position in order.tolist():
        keys = (int(ids[position]), int(codes[position]), int(labels[position]))
        reason = next(
            (
                why
                for key, known, why in zip(
                    keys, seen, (SAME_ROW, SAME_PROMPT, SAME_LABEL), strict=True
                )
                if key and key in known
            ),
            None,
        )
        if reason is not None and not frozen[position]:
            found[position] = reason
            continue
        for key, known in zip(keys, seen, strict=True):
            known.add(key)
    return found


def _repeated(values: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)
