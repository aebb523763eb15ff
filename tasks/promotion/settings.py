"""The recipe's section `promotion`: who moves the alias `champion`."""

from typing import Literal

from pydantic import Field

from tasks.settings import Settings


class PromotionSettings(Settings):
    """Who moves the alias `champion` to a version that passed the gate."""

    policy: Literal["manual", "approval", "automatic"] = "manual"
    """`manual`: a person, later. `approval`: a person, asked by a form in Prefect. `automatic`: the run itself."""
    approval_hours: float = Field(default=72.0, gt=0, le=8760)
    """How long the form waits. Longer: fewer candidates expire unseen, and more are judged against a
    champion that is gone by then."""
