"""Mix the rows of several sources in an order that nothing but their weights decides."""

import heapq
from collections.abc import Iterator, Sequence

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.opening import Opened
from tasks.dataset.rows import Row


def interleaved(opened: Sequence[Opened], bad: BadRows) -> Iterator[tuple[int, Row]]:
    """Yield (index of the source, row) until every source is empty; no row is left out or repeated.

    Without weights one source follows the other. With weights, a source of weight 3 gives three rows
    for each one of a source of weight 1, spread evenly; a source that gives no weight has 1. When one
    is empty, the others go on in their proportion.
    """
    if all(source.weight is None for source in opened):
        for index, source in enumerate(opened):
            for row in source.rows(bad):
                yield index, row
        return
    streams = [source.rows(bad) for source in opened]
    strides = [1 / (source.weight or 1.0) for source in opened]
    # Next is the source whose next row is due first; each row makes the next due one stride later.
    due = [(stride / 2, index) for index, stride in enumerate(strides)]
    heapq.heapify(due)
    taken = [0] * len(opened)
    while due:
        _, index = due[0]
        try:
            row = next(streams[index])
        except StopIteration:
            heapq.heappop(due)
            continue
        yield index, row
        taken[index] += 1
        # A product and no running sum: rounding must not add up over millions of rows.
        heapq.heapreplace(due, ((taken[index] + 0.5) * strides[index], index))
