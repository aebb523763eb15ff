"""The work pool of trainings that are containers or jobs, made before `loraline deploy` makes it one of processes.

Run as `python -P pool.py docker|kubernetes`, with Prefect's address in PREFECT_API_URL. Of a pool that is there it
changes what is named here, and nothing else: that is its owner's, on the pool's page.
"""

import argparse
import contextlib
import json
import sys
from copy import deepcopy
from pathlib import Path, PurePosixPath
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL

from tasks.errors import LoralineError, UserError
from tasks.outage import is_outage

POOL = "loraline"
PROJECT = "/srv/project"
"""Where a run finds its recipe: LORALINE_PROJECT of the images."""
KEPT = ("image", "volumes")
"""Variables that a new template leaves as they are: what runs, and where it finds its files."""
TEMPLATES = Path(__file__).with_name("job-templates")


def main(argv: list[str]) -> int:
    """Create the pool, or change in it what is named; returns the exit code."""
    named = arguments(argv)
    if PREFECT_API_URL.value() is None:
        print("error: PREFECT_API_URL is not set: it names Prefect's server.", file=sys.stderr)
        return 1
    try:
        with get_client(sync_client=True) as client:
            print(apply(client, named), flush=True)
    except LoralineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_outage(error):
            raise
        print(f"error: No answer from {PREFECT_API_URL.value()}: {error}", file=sys.stderr)
        return 1
    return 0


def arguments(argv: list[str]) -> argparse.Namespace:
    """What is named. Leaves with the code 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="pool.py", description=__doc__)
    parser.add_argument("type", choices=("docker", "kubernetes"))
    parser.add_argument("--image", help="what runs are started from; none: the template's")
    parser.add_argument("--project", help="full path on the host, mounted read-only (docker)")
    parser.add_argument("--limit", type=int, help="runs at once, of a pool that is created here")
    parser.add_argument("--overwrite", action="store_true", help="take this release's template")
    named = parser.parse_args(argv)
    if named.project and named.type != "docker":
        parser.error("--project: jobs have their recipes in the image")
    # A relative one would be the name of a volume, and a colon its end.
    if named.project and (not PurePosixPath(named.project).is_absolute() or ":" in named.project):
        parser.error(f"--project: {named.project!r} is no full path without a colon")
    return named


def apply(client: SyncPrefectClient, named: argparse.Namespace) -> str:
    """Returns what was done. Raises: UserError for a pool of another type."""
    wanted = given(json.loads((TEMPLATES / f"{named.type}.json").read_text()), named)
    try:
        there = client.read_work_pool(POOL)
    except ObjectNotFound:
        # Another pod that starts may be quicker.
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(
                WorkPoolCreate(
                    name=POOL,
                    type=named.type,
                    base_job_template=wanted,
                    concurrency_limit=named.limit,
                )
            )
            return f"The pool {POOL} was created, of type {named.type}."
        there = client.read_work_pool(POOL)
    if there.type != named.type:
        raise UserError(
            f"The pool {POOL} is of type {there.type}, and no pool's type can be changed. When nothing trains: stop its "
            f"workers, `prefect work-pool delete {POOL}`, and start this again; docs/containers.md has the steps."
        )
    template = given(overwritten(there.base_job_template, wanted, named), named)
    if template == there.base_job_template:
        return f"The pool {POOL} is as it should be."
    client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
    return f"The pool {POOL} was changed."


def overwritten(
    there: dict[str, Any], wanted: dict[str, Any], named: argparse.Namespace
) -> dict[str, Any]:
    """The template to go on from: the pool's own, or this release's with what the pool's runs need."""
    if not named.overwrite:
        return deepcopy(there)
    before, now = (_variables(it) for it in (there, wanted))
    for name in before.keys() & now.keys() & set(KEPT):
        if "default" in before[name]:
            now[name]["default"] = before[name]["default"]
    return wanted


def given(template: dict[str, Any], named: argparse.Namespace) -> dict[str, Any]:
    """The template with what is named as its variables' defaults."""
    # An owner may have written a value into the configuration, and taken the variable away.
    variables = _variables(template)
    if named.image and "image" in variables:
        variables["image"]["default"] = named.image
    if named.project and "volumes" in variables:
        before = variables["volumes"].get("default") or []
        others = [it for it in before if it.split(":")[1:2] != [PROJECT]]
        variables["volumes"]["default"] = [*others, f"{named.project}:{PROJECT}:ro"]
    return template


def _variables(template: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = template.get("variables", {}).get("properties", {})
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
