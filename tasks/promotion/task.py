"""The Prefect tasks that promote, go back, and see what was promoted elsewhere."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for

from tasks.artifacts import Version
from tasks.home import Home
from tasks.promotion.settings import PromotionSettings
from tasks.registry import CHAMPION, PROMOTED_AT, version_at
from tasks.stage_report import show
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from tasks.promotion.approval import Settled
    from tasks.promotion.notices import Notices
    from tasks.promotion.promoting import Moved, Verify
    from tasks.promotion.reconciling import Seen
    from tasks.promotion.repeating import Asked
    from tasks.promotion.work import Decision


@task(
    name="promote version",
    task_run_name="decide on {version.name} v{version.version} (policy: {settings.policy})",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def promote_version(
    settings: PromotionSettings,
    version: Version,
    tracker: Tracker,
    *,
    judged_against: str | None,
    verify: "Verify",
    comparable: bool = True,
    gated: bool = True,
    recipe: str = "",
    overrides: tuple[str, ...] = (),
) -> "tuple[Version, Decision]":
    """Move the alias `champion` if the policy says so; the version with its aliases as they are then.

    `judged_against` is the number of the champion that the report compares with (None: there was
    none); promotion fails when another one was promoted since. `comparable` is False when there is a
    champion on another base. `verify` proves the version before anything is moved. By `recipe`, changed by
    `overrides`, a form that is answered late has the version judged again.
    """
    from tasks.promotion.promoting import promote
    from tasks.promotion.work import decide, note_judgement

    note_judgement(tracker, version, judged_against)
    decision = decide(settings, comparable=comparable, gated=gated)
    if decision.promote:
        version = promote(
            tracker,
            version.name,
            version.version,
            reason=decision.reason,
            # What this run has proved a moment ago need not be loaded again.
            verify=(lambda _: proof) if (proof := version.proof) else verify,
            instead_of=judged_against,
            notices=flow_notices(tracker),
            flow_run=flow_run.id,
        ).version
    elif settings.policy == "approval" and (
        form := _ask(
            version,
            judged_against,
            hours=settings.approval_hours,
            recipe=recipe,
            overrides=list(overrides),
        )
    ):
        decision = replace(decision, reason=f"{decision.reason} Answer the form: {form}")
    get_run_logger().info(
        "Version %s of %s: %s Aliases: %s",
        version.version,
        version.name,
        decision.reason,
        ", ".join(version.aliases) or "none",
    )
    return version, decision


@task(
    name="promote by request",
    task_run_name="promote {name} v{version}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def promote_registered(
    tracker: Tracker,
    name: str,
    version: str,
    *,
    reason: str,
    verify: "Verify",
    asked: "Asked",
    actor: str | None = None,
    force: bool = False,
) -> "Moved":
    """Promote a version that somebody chose, once a flow run, and leave its verdict as a Prefect artifact.

    Raises: as `promoting.promote` and `repeating.moved_before`.
    """
    from tasks.promotion.promoting import promote
    from tasks.promotion.repeating import moved_before
    from tasks.promotion.work import stored_verdict

    verdict = stored_verdict(tracker, name, version)
    notices = flow_notices(tracker)
    run = flow_run.id
    try:
        moved = moved_before(tracker, name, flow_run=run, asked=asked, notices=notices) or promote(
            tracker,
            name,
            version,
            reason=reason,
            verify=verify,
            actor=actor,
            force=force,
            notices=notices,
            flow_run=run,
        )
    except Exception as error:
        _show(name, version, f"Not promoted: {error}", verdict.table())
        raise
    told = moved.entry.title if moved.entry else f"Version {version} is champion already."
    _show(name, version, f"{told} Reason: {reason}", verdict.table())
    get_run_logger().info("%s: %s", name, told)
    return moved


@task(
    name="roll back", task_run_name="roll back {name}", persist_result=False, cache_policy=NO_CACHE
)
def roll_back_champion(
    tracker: Tracker,
    name: str,
    *,
    reason: str,
    verify: "Verify",
    asked: "Asked",
    actor: str | None = None,
) -> "Moved":
    """Make `previous` the champion again, once a flow run.

    Raises: as `promoting.roll_back` and `repeating.moved_before`.
    """
    from tasks.promotion.promoting import roll_back
    from tasks.promotion.repeating import moved_before
    from tasks.promotion.work import stored_verdict

    notices = flow_notices(tracker)
    run = flow_run.id
    moved = moved_before(tracker, name, flow_run=run, asked=asked, notices=notices) or roll_back(
        tracker,
        name,
        reason=reason,
        verify=verify,
        actor=actor,
        notices=notices,
        flow_run=run,
    )
    assert moved.entry is not None
    version = moved.version.version
    verdict = stored_verdict(tracker, name, version)
    _show(name, version, f"{moved.entry.title}. Reason: {reason}", verdict.table())
    get_run_logger().info("%s: %s", name, moved.entry.title)
    return moved


@task(
    name="reconcile registry",
    task_run_name="reconcile registry",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def reconcile_models(tracker: Tracker, *, verify: "Verify") -> "list[Seen]":
    """Write down what was promoted outside of loraline, and warn of what does not load."""
    from tasks.promotion.reconciling import reconcile

    seen = reconcile(tracker, verify=verify, notices=flow_notices(tracker))
    logger = get_run_logger()
    for it in seen:
        if it.entry is not None:
            logger.info("%s: %s", it.name, it.entry.title)
        if it.alert is not None:
            logger.error("%s", it.alert)
            show("loraline-alert", f"# {it.name}\n\n{it.alert}\n", f"{it.name}: alert")
        elif it.standing is not None:
            logger.warning("%s", it.standing)
    return seen


def show_question(tracker: Tracker, name: str, version: str) -> str:
    """What the form asks, in markdown, left as a Prefect artifact as well."""
    from tasks.promotion.approval import asked_for

    question = asked_for(tracker, name, version)
    show("loraline-approval", f"# {name}, version {version}\n\n{question}\n", f"{name} v{version}")
    return question


@task(name="compare champions", persist_result=False, cache_policy=NO_CACHE)
def needs_new_verdict(tracker: Tracker, name: str, version: str) -> bool:
    """Whether another version is champion than the one that the candidate was judged against."""
    from tasks.promotion.work import champion_version, stored_verdict

    verdict = stored_verdict(tracker, name, version)
    champion = champion_version(tracker, name)
    return champion != version and not verdict.holds_for(champion)


@task(name="note verdict", persist_result=False, cache_policy=NO_CACHE)
def note_new_verdict(tracker: Tracker, name: str, version: str, found: dict[str, Any]) -> None:
    """Put what `evaluate` found on the version."""
    from tasks.promotion.work import note_verdict

    note_verdict(
        tracker,
        name,
        version,
        gate=found["gate"],
        metrics=found["metrics"],
        champion=found["champion"],
    )


@task(
    name="carry out approval",
    task_run_name="{decision} {name} v{version}, says {by}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def carry_out_approval(
    tracker: Tracker,
    name: str,
    version: str,
    *,
    decision: Literal["promote", "reject"],
    reason: str,
    by: str,
    verify: "Verify",
) -> "Settled":
    """Do what a person answered. Raises: as `approval.carry_out_answer`."""
    from tasks.promotion.approval import Answer, carry_out_answer

    settled = carry_out_answer(
        tracker,
        name,
        version,
        Answer(decision, reason, by),
        verify=verify,
        notices=flow_notices(tracker),
        flow_run=flow_run.id,
    )
    get_run_logger().info("%s: %s", name, settled.told)
    return settled


def _ask(version: Version, judged_against: str | None, **form: Any) -> str | None:
    """Start a run that waits with a form; its page, or None where the command line is the way.

    `form` is what the flow `approve` is given beside name and version.
    """
    from tasks.promotion.approval import FORM_DEPLOYMENT

    logger = get_run_logger()
    line = f"loraline promote {version.name} {version.version} --reason '...'"
    try:
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(FORM_DEPLOYMENT)
            # A repeated run asks the same question once.
            key = f"approve {version.uri} instead of {judged_against}"
            while True:
                run = client.create_flow_run_from_deployment(
                    deployment.id,
                    parameters={"name": version.name, "version": version.version, **form},
                    tags=[_form_tag(version)],
                    idempotency_key=key,
                )
                if run.state is None or not run.state.is_final():
                    break
                # Answered, expired or closed: nobody can answer that one any more.
                key = f"approve {version.uri} after {run.id}"
    except ObjectNotFound:
        logger.warning(
            "There is no deployment %s whose form could ask a person. To promote: %s",
            FORM_DEPLOYMENT,
            line,
        )
        return None
    except Exception:
        # The version is registered, and the way by the command line stays open.
        logger.warning("Prefect could not open the form. To promote: %s", line, exc_info=True)
        return None
    place = url_for("flow-run", obj_id=run.id) or f"flow run {run.id}"
    logger.info("A form waits for an answer: %s. Or: %s", place, line)
    return place


def is_unasked(tracker: Tracker, version: Version) -> bool:
    """Whether nobody was asked about a version although somebody could be: by a form, as the policy says.

    False where Prefect has no such deployment or does not answer: the command line is the way then.
    """
    from tasks.promotion.approval import APPROVAL_TAG, FORM_DEPLOYMENT

    tags = version_at(tracker, version.uri).tags
    if CHAMPION in version.aliases or APPROVAL_TAG in tags or PROMOTED_AT in tags:
        return False
    ended_badly = [StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(FORM_DEPLOYMENT)
            asked = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    tags=FlowRunFilterTags(all_=[_form_tag(version)]),
                    state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=ended_badly)),
                ),
                limit=1,
            )
    except ObjectNotFound:
        return False
    except Exception:
        get_run_logger().warning("Prefect could not tell whether there is a form", exc_info=True)
        return False
    return not asked


def _form_tag(version: Version) -> str:
    return f"loraline:form {version.uri}"


def flow_notices(tracker: Tracker) -> "Notices":
    """The outbox, with the Prefect server of this flow run among its receivers."""
    return home_notices(tracker.home)


def home_notices(home: Home) -> "Notices":
    """The same, of a home whose MLflow nobody has to ask."""
    from tasks.promotion.notices import notices_of

    api, credentials = prefect_client()
    return notices_of(home, prefect_api=api, environ={**os.environ, **credentials})


def prefect_client() -> tuple[str | None, dict[str, str]]:
    """The address of the Prefect API that this process is a client of, and its credentials by variable."""
    api = get_current_settings().api
    secrets = {"PREFECT_API_KEY": api.key, "PREFECT_API_AUTH_STRING": api.auth_string}
    return api.url, {name: it.get_secret_value() for name, it in secrets.items() if it is not None}


def _show(name: str, version: str, told: str, table: str) -> None:
    show(
        "loraline-promotion",
        f"# {name}, version {version}\n\n{told}\n\n{table}\n",
        f"{name}, version {version}",
    )
