"""What the trainings of `peers.py` say together: who is how fast, and whether all did the same work."""

import statistics
import sys
from dataclasses import dataclass, field
from typing import Any

from harness import Result, ratio

LOSS_TOLERANCE = 0.03
"""Largest relative difference of a half's mean loss: packs hold other rows in a step than batches do,
and peers that split fused projections train more parameters."""
OURS = "product"


@dataclass(frozen=True)
class Measured:
    """What one training answered."""

    seconds: float
    steps: int
    tokens: int
    answers: int
    losses: list[float]
    versions: dict[str, str]

    @property
    def speed(self) -> float:
        """Real tokens per second."""
        return self.tokens / self.seconds


@dataclass
class Comparison(Result):
    """With the versions of the environments that were compared."""

    peers: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        found = super().as_json()
        return found | {"versions": found["versions"] | self.peers}


def add(
    result: Comparison,
    shape: str,
    found: list[dict[str, Measured]],
    settings: dict[str, dict[str, int]],
) -> None:
    """One shape's rounds as ratios and values; the best peer is the one with the best median."""
    speeds = {way: [one[way].speed for one in found] for way in found[0]}
    medians = {way: statistics.median(values) for way, values in speeds.items()}
    best = max(settings, key=lambda name: medians[name])
    for name, way in [("best_peer", best), *((name, name) for name in settings)]:
        slow, fast = [1 / s for s in speeds[way]], [1 / s for s in speeds[OURS]]
        result.ratios[f"{shape}_vs_{name}"] = ratio(slow, fast)
    for way, median in medians.items():
        result.values[f"{shape}_{way}_tokens_per_second"] = median
    for name, chosen in settings.items():
        result.values |= {f"{shape}_{name}_{key}": float(value) for key, value in chosen.items()}
        result.equal = bool(result.equal) and same_work(found[0][OURS], found[0][name])
        # The first one is the peer itself.
        (itself, own), *rest = found[0][name].versions.items()
        result.peers |= {itself: own} | {f"{itself}'s {key}": value for key, value in rest}


def same_work(product: Measured, peer: Measured) -> bool:
    """Whether a peer read the same tokens, learned the same ones, and saw the same losses."""
    # Packs after the last whole step do not count: less than a step may be missing.
    tokens = product.tokens * (1 - 1 / peer.steps) < peer.tokens <= product.tokens
    answers = abs(peer.answers / peer.tokens - product.answers / product.tokens) < 0.01
    pairs = list(zip(halves(product.losses), halves(peer.losses), strict=True))
    print("mean loss by halves, product and peer:", pairs, file=sys.stderr)
    return tokens and answers and all(abs(a - b) <= LOSS_TOLERANCE * a for a, b in pairs)


def halves(values: list[float]) -> tuple[float, float]:
    """Mean of the first and of the second half."""
    middle = max(1, len(values) // 2)
    return statistics.fmean(values[:middle]), statistics.fmean(values[-middle:])
