"""The Prefect tasks around the registry: what is registered already, who is champion, register."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Adapter, Version
from tasks.progress import announce
from tasks.registration.provenance import Provenance
from tasks.registration.settings import RegistrationSettings
from tasks.stage_report import show_summary, started
from tasks.store import Store
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from tasks.registration.work import Registered
    from tasks.registry import Champion


def registration_key(
    settings: RegistrationSettings,
    *,
    name: str,
    adapter: Adapter,
    evaluation: str,
    tracker: Tracker,
) -> str:
    """The registration's fingerprint: the same adapter, judged by the same questions, in this registry."""
    from tasks.registration import work

    return work.fingerprint_of(
        settings,
        name=name,
        adapter_fingerprint=adapter.fingerprint,
        evaluation_fingerprint=evaluation,
        tracking_uri=tracker.uri,
    )


def find_registered(store: Store, key: str, tracker: Tracker) -> "Registered | None":
    """The version that the registration `key` made, if it still stands."""
    from tasks.registration import work

    return work.find_registered(store, key, tracker)


def recipe_commit(folder: Path) -> str | None:
    """The commit of the git repository around a recipe's folder, marked where files differ from it."""
    from tasks.registration import work

    return work.git_commit(folder)


def verifier(tracker: Tracker, base: Path | None = None) -> Callable[[str], str]:
    """What a promotion is given to prove a version with: it loads `models:/NAME/VERSION` in a fresh process."""
    from tasks.registration.proving import prove_version

    return lambda uri: prove_version(tracker, uri, base=base)


@task(name="find champion", persist_result=False, cache_policy=NO_CACHE)
def find_champion(tracker: Tracker, name: str) -> "Champion | None":
    """The champion with its adapter on this machine; None without one.

    Raises: StageFailed when there is one and it cannot be loaded.
    """
    from tasks.registry import current_champion

    champion = current_champion(tracker, name, tracker.home)
    if champion is None:
        get_run_logger().info("%s has no champion yet", name)
    else:
        get_run_logger().info("The champion of %s is version %s", name, champion.version)
    return champion


@task(name="register adapter", persist_result=False, cache_policy=NO_CACHE)
def register_adapter(
    key: str,
    *,
    settings: RegistrationSettings,
    store: Store,
    tracker: Tracker,
    name: str,
    made: Provenance,
    max_tokens: int,
) -> Version:
    """Register the adapter (once), publish the summary, return the version."""
    from tasks.registration import work

    began = time.monotonic()
    started("registration")
    version = work.register_adapter(
        store,
        settings,
        key=key,
        tracker=tracker,
        name=name,
        made=made,
        max_tokens=max_tokens,
    )
    seconds = time.monotonic() - began
    get_run_logger().info(
        "Adapter %s is version %s of %s (%.1f s)",
        made.adapter.sha256[:12],
        version.version,
        name,
        seconds,
    )
    show_summary(
        "registration", store.path("registration", key), f"{name}, version {version.version}"
    )
    announce("stage", stage="registration", state="done", seconds=seconds, fingerprint=key)
    return version
