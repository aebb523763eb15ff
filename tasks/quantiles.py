"""How a count is spread over rows, in four numbers."""

from collections.abc import Sequence


def quantiles(values: Sequence[int]) -> dict[str, int]:
    """Smallest, median, 95th percentile (nearest rank) and largest of at least one number."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "min": ordered[0],
        "median": ordered[last // 2],
        "p95": ordered[round(last * 0.95)],
        "max": ordered[-1],
    }
