"""What the registration slice's workers are asked and what they answer."""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

from tasks.adapter_effect import allowed_difference
from tasks.errors import StageFailed

FAILED = "stage_failed"
"""The event by which a worker explains its failure in words before it dies of it."""


class NotFinite(StageFailed):
    """A version computed NaN or an infinity; another kind of device than the training's may do so alone."""


class VerifyJob(BaseModel):
    """Load a version as a user would and compare it with the adapter that was trained.

    The registry is named by the environment: its address may hold a password.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_uri: str
    """`models:/<name>/<version>`, or `models:/m-<id>` before there is a version."""
    base: Path | None
    """None: the version finds it itself."""
    fixture: Path
    """Folder of `fixture.json` and `fixture.safetensors`, written by the training."""
    trained_on: str | None
    """The training's device, as it told of itself: a GPU's name, or `cpu, 2 threads`. None: not recorded."""
    result: Path


class Verification(BaseModel):
    """What the fresh process found."""

    rows: int
    positions: int
    dtype: str
    largest_difference: FiniteFloat
    """Largest absolute difference between the version's logits and the trained adapter's."""
    tolerance: FiniteFloat
    """What rounding explains on the device of the training."""
    same_device: bool = True
    """Whether it was computed where the training was, on a GPU or on the CPU."""
    adapter_effect: FiniteFloat
    """Largest absolute difference that the adapter makes to the base's logits on the same rows."""
    answer: str
    """The version's answer to the input example."""
    finish_reason: Literal["stop", "length"]
    seconds: float

    @property
    def told(self) -> str:
        """The finding in a sentence."""
        return (
            f"files as recorded; loaded in a fresh process; logits differ by at most "
            f"{self.largest_difference:.2g} from the trained adapter's, {self.allowed:.2g} is allowed"
            + (
                ""
                if self.same_device
                else " (computed on another kind of device than the training's)"
            )
        )

    @property
    def passed(self) -> bool:
        """Whether the version computes what the trained adapter computed."""
        return self.largest_difference <= self.allowed

    @property
    def allowed(self) -> float:
        """The largest difference with which it is still that adapter."""
        return allowed_difference(
            # Another device adds up in another order, and in 16 bits each layer makes more of that.
            self.tolerance if self.same_device else math.inf,
            self.adapter_effect,
        )


class PredictJob(BaseModel):
    """Answer chat requests with a version."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_uri: str
    """What people call it."""
    model: Path
    """Its files, which are known to be as they were registered."""
    base: Path | None
    """Overrides where the version looks for its base."""
    requests: Path
    """JSON lines: one `Request` each."""
    answers: Path
    """JSON lines: one `Answer` for each request, in order. Renamed into place when complete."""
    batch_size: int = 8


class Request(BaseModel):
    """One chat request and where it came from."""

    place: str
    """For messages: `rows.jsonl:7`."""
    request: dict[str, Any]


class Answer(BaseModel):
    """The answer to one request."""

    answer: str
    finish_reason: Literal["stop", "length"]
    usage: dict[str, Any]
