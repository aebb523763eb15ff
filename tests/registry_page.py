"""The page `mlflow/README.md` as data: which names it says that MLflow holds, and what it leaves out."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "mlflow" / "README.md"
STAGES = "dataset|tokenization|training|evaluation|registration|promotion"
METRIC = "[a-zA-Z0-9_]+"
PLACES = {
    "<section>": f"({STAGES})",
    "<stage>": f"({STAGES})",
    "<field>": r"[\w.]+",
    "<metric>": METRIC,
    "<measure>": "(cpu|system_memory|disk|network|gpu)_.+",
    "<aspect>": "(slices|prompt_lengths|answer_lengths|turns|words)",
}
"""What stands for the names between angle brackets."""


def names(part: str, *rows: str) -> list[str]:
    """The names in the rows of one part of the page (`in a run`) that begin with one of these words."""
    table = PAGE.read_text(encoding="utf-8").partition(f"\n| {part} |")[2].partition("\n\n")[0]
    lines = [line for line in table.splitlines() if line.lstrip("| ").startswith(rows)]
    assert lines, f"{part}: {rows}"
    return [name for line in lines for name in re.findall(r"`([^`]+)`", line)]


def unnamed(written: Iterable[str], spoken: list[str]) -> set[str]:
    """Those that the page does not name."""
    patterns = [
        re.sub(r"<\w+>", lambda place: PLACES[place[0]], re.escape(name)) for name in spoken
    ]
    return {it for it in written if not any(re.fullmatch(wanted, it) for wanted in patterns)}


def unnamed_of_run(client: Any, run_id: str) -> set[str]:
    """What this run of a retraining holds and the page does not name."""
    run = client.get_run(run_id)
    metrics = names("in a run", "live metrics", "system metrics", "metrics")
    tags = {name for name in run.data.tags if not name.startswith("mlflow.")}
    return (
        unnamed(run.data.params, names("in a run", "parameters"))
        | unnamed(run.data.metrics, metrics)
        | unnamed(tags, names("in a run", "tags"))
        | unnamed(_files(client, run_id), names("in a run", "artifacts"))
    )


def _files(client: Any, run_id: str, folder: str | None = None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _files(client, run_id, entry.path)
        else:
            # What lies in a folder is the folder's matter.
            yield entry.path.rpartition("/")[0] + "/" if "/" in entry.path else entry.path
