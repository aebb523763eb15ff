"""One entry of the promotion log, and the hash that binds it to the one before."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.store import digest

LONGEST_REASON = 1500
"""Characters; the whole entry must fit into one tag of MLflow's (8,000)."""
MOST_METRICS = 12
Kind = Literal["promotion", "rollback", "observed", "withdrawn"]


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
    came about, because somebody moved the alias before it was complete."""
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

    @property
    def text(self) -> str:
        """Canonical JSON: sorted keys, no spaces, ASCII."""
        return canonical(self.model_dump(mode="json"))

    @property
    def hash(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        return digest(self.model_dump(mode="json"))

    @property
    def title(self) -> str:
        """The entry as a run's name: `#3 promotion: version 7 instead of 5`."""
        if self.kind == "withdrawn":
            return f"#{self.number} withdrawn: entry {self.withdraws} did not come about"
        new = f"version {self.champion_to}" if self.champion_to else "no champion"
        old = f" instead of {self.champion_from}" if self.champion_from else ""
        return f"#{self.number} {self.kind}: {new}{old}"


def canonical(value: Any) -> str:
    """The text whose sha256 is `tasks.store.digest` of the value."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
