"""The Prefect task that applies the promotion policy to a version that passed the gate."""

from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Version
from tasks.promotion.settings import PromotionSettings
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from tasks.promotion.work import Decision


@task(name="promote version", persist_result=False, cache_policy=NO_CACHE)
def promote_version(
    settings: PromotionSettings,
    version: Version,
    tracker: Tracker,
    *,
    judged_against: str | None,
    comparable: bool = True,
    gated: bool = True,
) -> "tuple[Version, Decision]":
    """Move the alias `champion` if the policy says so; the version with its aliases as they are then.

    `judged_against` is the number of the champion that the report compares with (None: there was
    none); promotion fails when another one was promoted since. `comparable` is False when there is a
    champion on another base.
    """
    from tasks.promotion.work import decide, promote

    decision = decide(settings, comparable=comparable, gated=gated)
    if decision.promote:
        version = promote(
            tracker,
            version.name,
            version.version,
            reason=decision.reason,
            instead_of=judged_against,
        )
    get_run_logger().info(
        "Version %s of %s: %s Aliases: %s",
        version.version,
        version.name,
        decision.reason,
        ", ".join(version.aliases) or "none",
    )
    return version, decision
