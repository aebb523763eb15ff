"""The recipe's section `promotion`: who moves the alias `champion`."""

from typing import Literal

from tasks.settings import Settings


class PromotionSettings(Settings):
    """Who moves the alias `champion` to a version that passed the gate."""

    policy: Literal["manual", "approval", "automatic"] = "manual"
    """`manual`: a person, later. `approval`: a person, asked by the run. `automatic`: the run itself."""
