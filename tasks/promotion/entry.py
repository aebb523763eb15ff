"""One entry of the promotion log, and the hash that binds it to the one before."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.store import digest

LONGEST_REASON = 1500
"""Characters; the whole entry must fit into one tag of MLflow's (8,000)."""
LONGEST_NAME = 200
"""Characters of the name that a person gives in a form."""
MOST_METRICS = 12
Kind = Literal["promotion", "rollback", "observed", "withdrawn", "accepted"]
MOVES: tuple[Kind, ...] = ("promotion", "rollback")
"""Those that move the alias; the others tell what happened without them."""
TOLD: tuple[Kind, ...] = ("promotion", "rollback", "observed", "accepted")
"""Those that others are told of; what never came about was told to nobody."""


class Entry(BaseModel):
    """What happened to the alias `champion`, who did it, when and why."""

    model_config = ConfigDict(frozen=True)

    number: int
    """1 for the first."""
    before: str | None
    """The hash of the entry before; None for the first."""
    id: str
    """Names the happening in events and webhooks: what is delivered twice bears it twice."""
    kind: Kind
    """`observed`: moved by somebody else, as in MLflow's own UI. `withdrawn`: entry `withdraws` never
    came about, because somebody moved the alias before it was complete. `accepted`: somebody went on
    with a log that was damaged; `verification` tells what was wrong."""
    name: str
    champion_from: str | None
    champion_to: str | None
    previous_from: str | None
    previous_to: str | None
    adapter_sha256: str | None = None
    actor: str
    reason: str
    at: str
    """ISO 8601, UTC. For `observed` the moment when it was noticed."""
    not_before: str | None = None
    """For `observed`: the champion was still the old one then, as far as known."""
    gate: str | None = None
    """The stored verdict: passed, refused or none."""
    judged_against: str | None = None
    forced: bool = False
    """Somebody asked for it against the verdict, or without one that holds today."""
    verified: bool | None = None
    """Whether the version loaded in a fresh process; None where nobody looked."""
    verification: str = ""
    metrics: dict[str, float] = {}
    flow_run: str | None = None
    withdraws: int | None = None
    accepts: str | None = None
    """For `accepted`: sha256 of all entries before it, as they stood then."""

    @property
    def value(self) -> dict[str, Any]:
        """What is written, and hashed."""
        value = self.model_dump(mode="json")
        if self.accepts is None:
            # Younger than the log: an entry from before it must give the hash that it was recorded with.
            del value["accepts"]
        return value

    @property
    def text(self) -> str:
        """The JSON that is kept: sorted keys, no spaces; letters of every language count as one character."""
        return canonical(self.value)

    @property
    def hash(self) -> str:
        """sha256 (hex) of the same JSON in ASCII."""
        return digest(self.value)

    @property
    def title(self) -> str:
        """The entry as a run's name: `#3 promotion: version 7 instead of 5`."""
        if self.kind == "withdrawn":
            return f"#{self.number} withdrawn: entry {self.withdraws} did not come about"
        if self.kind == "accepted":
            return f"#{self.number} accepted: the log goes on behind a damage"
        new = f"version {self.champion_to}" if self.champion_to else "no champion"
        old = f" instead of {self.champion_from}" if self.champion_from else ""
        return f"#{self.number} {self.kind}: {new}{old}"


def canonical(value: Any) -> str:
    """JSON of a value. Its hash is `tasks.store.digest` of what it is read as, however letters are written."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def new_id() -> str:
    """An id that no entry has had."""
    return str(uuid.uuid4())


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
