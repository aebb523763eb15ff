"""`loraline deploy [RECIPE ...]`: give the recipes their schedules; a second time changes nothing."""

import argparse
import json
from pathlib import Path

from tasks.home import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Apply the deployments and the recipes' schedules to the Prefect server. A recipe with a section "
        "`schedule` gets a schedule of the deployment `retrain` under its name; one without it loses its "
        "own. What is paused stays paused."
    )
    parser.add_argument(
        "recipes",
        metavar="RECIPE",
        nargs="*",
        help="recipes, or folders of them (default: ./recipes, and retire what is gone from there)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Say what changed; 2 when a recipe could not be scheduled. Raises StageFailed without a server."""
    from flows.scheduled_recipes import chosen_recipes
    from flows.standing_server import enter_standing_server
    from flows.streams import own_standard_output

    here = home()
    here.prepare()
    recipes = list(chosen_recipes(args.recipes, Path.cwd()))
    with own_standard_output() as out:
        server = enter_standing_server(here)
        # Only now: what prefect reads at import says which server it talks to.
        from flows.deploying import apply_deployments

        applied = apply_deployments(here, recipes)
        if args.json:
            answer = {"changed": applied.changed, "problems": applied.problems}
            out.write(json.dumps(answer | {"server": server.url}) + "\n")
        else:
            for line in applied.changed or ["Nothing changed."]:
                out.write(f"{line}\n")
            for line in applied.problems:
                out.write(f"not deployed: {line}\n")
            out.write(
                f"{applied.schedules} recipes are scheduled on {server.url}; `loraline schedules` lists "
                "them.\n"
            )
    return 2 if applied.problems else 0
