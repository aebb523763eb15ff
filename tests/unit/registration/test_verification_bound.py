"""A verification must be able to tell the adapter from its absence."""

import pytest

from tasks.registration.job import Verification


def verification(difference: float, tolerance: float, effect: float) -> Verification:
    return Verification(
        rows=1,
        positions=4,
        dtype="bfloat16",
        largest_difference=difference,
        tolerance=tolerance,
        adapter_effect=effect,
        answer="",
        finish_reason="stop",
        seconds=0.0,
    )


@pytest.mark.parametrize(
    ("difference", "tolerance", "effect", "passed"),
    [
        (0.05, 0.13, 3.0, True),
        (0.14, 0.13, 3.0, False),
        # As different from the trained adapter as the base is.
        (0.12, 0.13, 0.12, False),
        (0.06, 0.13, 0.12, True),
        (0.0, 0.13, 0.0, True),
        (0.01, 0.13, 0.0, False),
    ],
)
def test_a_difference_as_large_as_the_adapter_s_effect_is_no_rounding(
    difference: float, tolerance: float, effect: float, passed: bool
) -> None:
    assert verification(difference, tolerance, effect).passed is passed
