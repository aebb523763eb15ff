"""How far logits may differ and still be those of an adapter: less than the adapter itself does."""


def allowed_difference(rounding: float, adapter_effect: float) -> float:
    """The largest difference of a logit: what rounding explains, and at most half of the adapter's effect.

    Without the second bound a base on which no adapter lies would pass wherever the adapter does
    little. `adapter_effect` is the largest difference that the adapter makes to the base's logits.
    """
    return min(rounding, adapter_effect / 2)
