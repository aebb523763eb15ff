"""Which metric modules there are, what each reads of the predictions, and where its source lies."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS = Path(__file__).resolve().parent / "metrics"

TEXT_MODULES = ("exact_match", "rouge", "bleu", "chrf")
"""Those that trivial answerers are measured by too."""
MORE_TEXT_MODULES = ("token_f1", "length_ratio", "repetition", "distinct")
MODULES = ("loss", *TEXT_MODULES, "stop_rate", "mean_length", *MORE_TEXT_MODULES)
"""Computed always."""
PAIR_MODULES = ("preference",)
"""Computed where rows are pairs of answers."""
OPTIONAL_MODULES = {
    "accuracy": "labels",
    "macro_f1": "labels",
    "json_validity": "json_validity",
}
"""Metric of `evaluation.metrics` -> the module that computes it."""
CUSTOM = "custom/"

_TEXTS = frozenset({*TEXT_MODULES, *MORE_TEXT_MODULES, *OPTIONAL_MODULES.values(), "schema_match"})
_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "loss": {"nll": "{}_nll", "correct": "{}_correct", "trained_tokens": "trained_tokens"},
    "preference": {
        "nll": "{}_nll",
        "trained_tokens": "trained_tokens",
        "rejected_nll": "{}_rejected_nll",
        "rejected_tokens": "rejected_tokens",
    },
    "stop_rate": {"predictions": "{}_answer", "stopped": "{}_stopped"},
    "mean_length": {"tokens": "{}_tokens"},
    "embedding_similarity": {"similarity": "{}_similarity"},
    "judge": {"verdicts": "{}_verdict"},
}
_OF_TEXT = {"predictions": "{}_answer", "references": "reference"}


@dataclass(frozen=True)
class MetricModule:
    """One module with an `evaluate.Metric`."""

    name: str
    """As the report names it; a module of the user's own is `custom/<name>`."""
    source: Path
    """Its Python file, whose folder has its name."""

    @property
    def sha256(self) -> str:
        """Of its source."""
        return hashlib.sha256(self.source.read_bytes()).hexdigest()

    @property
    def is_custom(self) -> bool:
        """Whether it is the user's own."""
        return self.name.startswith(CUSTOM)

    def inputs(self, model: str, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """What it is given of one model: its arguments' names -> columns of the predictions."""
        wanted = _COLUMNS.get(self.name, _OF_TEXT)
        return {name: columns[column.format(model)] for name, column in wanted.items()}


def shipped(name: str) -> MetricModule:
    """A module of this package."""
    return MetricModule(name, METRICS / name / f"{name}.py")


def modules_of(folder: Path) -> dict[str, Path]:
    """The user's own modules: name -> file, `<name>.py` or `<name>/<name>.py`.

    Files that begin with an underscore are none, nor those whose name could not stand in a gate rule.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.py"))}
    found |= {
        path.stem: path for path in sorted(folder.glob("*/*.py")) if path.parent.name == path.stem
    }
    return {
        name: path
        for name, path in found.items()
        if name.isidentifier() and not name.startswith("_")
    }


def chosen(
    metrics: Sequence[str], *, pairs: bool, schema: bool, embeddings: bool, judge: bool
) -> list[MetricModule]:
    """The shipped modules that a recipe asks for, in the order of the report."""
    optional = dict.fromkeys(OPTIONAL_MODULES[name] for name in metrics)
    names = [*MODULES, *(PAIR_MODULES if pairs else ()), *optional]
    names += ["schema_match"] if schema else []
    names += ["embedding_similarity"] if embeddings else []
    names += ["judge"] if judge else []
    return [shipped(name) for name in names]


def reads_texts(module: MetricModule) -> bool:
    """Whether it compares answers with references and needs nothing else."""
    return module.is_custom or module.name in _TEXTS
