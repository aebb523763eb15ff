"""A verification must be able to tell the adapter from its absence."""

import pytest

from tasks.registration.job import Verification


def verification(
    difference: float, tolerance: float, effect: float, *, same_device: bool = True
) -> Verification:
    return Verification(
        rows=1,
        positions=4,
        dtype="bfloat16",
        largest_difference=difference,
        tolerance=tolerance,
        same_device=same_device,
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


@pytest.mark.parametrize(
    ("difference", "passed"), [(0.14, True), (1.4, True), (1.6, False), (3.0, False)]
)
def test_on_another_device_half_of_the_adapter_s_effect_is_the_bound(
    difference: float, passed: bool
) -> None:
    found = verification(difference, 0.13, 3.0, same_device=False)
    assert found.passed is passed
    assert "1.5 is allowed (computed on another kind of device" in found.told
