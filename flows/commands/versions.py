"""`loraline versions [NAME]`: the registered versions of one adapter or of all, newest first."""

import argparse
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.home import home

if TYPE_CHECKING:
    from tasks.registration.listing import Listed
    from tasks.tracking import Tracker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="registered model (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print a table, or one JSON object. Raises UserError when there is no model of that name."""
    from flows.streams import own_standard_output
    from tasks.tracking import reachable_tracker

    with own_standard_output() as answer:
        found = with_promotions(reachable_tracker(home()), args.name)
        if args.json:
            versions = [{**entry.model_dump(), **promoted} for entry, promoted in found]
            answer.write(json.dumps({"versions": versions}) + "\n")
            return 0
        if not found:
            answer.write("No version is registered yet. `loraline run RECIPE` registers one.\n")
            return 0
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for heading in ("model", "version", "aliases", "created (UTC)", "dataset", "gate"):
            table.add_column(heading, no_wrap=heading != "aliases")
        table.add_column("promoted by")
        for heading in ("rougeL", "chrf", "loss"):
            table.add_column(f"{heading} (base)", justify="right", no_wrap=True)
        for entry, promoted in found:
            created = datetime.fromtimestamp(entry.created_ms / 1000, UTC)
            table.add_row(
                entry.name,
                entry.version,
                ", ".join(entry.aliases),
                f"{created:%Y-%m-%d %H:%M}",
                (entry.dataset_digest or "")[:8],
                entry.gate or "",
                _promoted(promoted["promoted_by"], promoted["promoted_at"]),
                *(_pair(entry.metrics, entry.base_metrics, m) for m in ("rougeL", "chrf", "loss")),
            )
        Console(file=answer, width=None if answer.isatty() else 160).print(table)
    return 0


def with_promotions(tracker: "Tracker", name: str | None) -> "list[tuple[Listed, dict[str, Any]]]":
    """The versions, each with `promoted_by` and `promoted_at`: who made it champion last, and when (ISO 8601, UTC).

    Both None for one that never was. As the promotion log has them, and not the version's tags.
    """
    from tasks.promotion.promoted import promotions_of
    from tasks.registration.listing import list_versions

    entries = list_versions(tracker, name)
    known = {model: promotions_of(tracker, model) for model in {entry.name for entry in entries}}
    found = []
    for entry in entries:
        last = known[entry.name].get(entry.version)
        by, at = (last.by, last.at) if last else (None, None)
        found.append((entry, {"promoted_by": by, "promoted_at": at}))
    return found


def _promoted(by: str | None, at: str | None) -> str:
    if at is None:
        return ""
    # The whole sentence about an unknown person is in the log.
    return f"{(by or 'unknown').partition(' (')[0]}, {at[:10]}"


def _pair(own: dict[str, float], base: dict[str, float], metric: str) -> str:
    if metric not in own:
        return ""
    return f"{own[metric]:.3f} ({base[metric]:.3f})" if metric in base else f"{own[metric]:.3f}"
