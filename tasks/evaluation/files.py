"""The files that the section `evaluation` names: where they are, whether they are there, what they hold."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.evaluation.catalog import CUSTOM, modules_of
from tasks.evaluation.json_schemas import schema_mistake
from tasks.evaluation.own_modules import mistakes_of_modules
from tasks.evaluation.settings import EvaluationSettings
from tasks.files import expanded

RELATIVE = "Relative paths start at the recipe's folder"
LM_EVAL = "lm_eval"


@dataclass(frozen=True)
class EvaluationFiles:
    """Absolute paths; None or empty where the recipe names nothing."""

    metrics_folder: Path | None
    custom: dict[str, Path]
    """The user's own metric modules, which lie in it."""
    json_schema: Path | None
    embedding_model: Path | None
    retention: Path | None
    lm_eval_tasks: Path | None

    @property
    def digests(self) -> dict[str, str]:
        """What the fingerprint must know of them: name -> sha256 of the content."""
        found: dict[str, str] = {}
        for name, path in (
            # Whole: a module computes by what its helpers and word lists say, too.
            ("metrics_folder", self.metrics_folder),
            ("json_schema", self.json_schema),
            ("retention", self.retention),
            ("embedding_model", self.embedding_model),
            ("lm_eval_tasks", self.lm_eval_tasks),
        ):
            if path is not None:
                found[name] = _sha256(path)
        return found


def find_files(settings: EvaluationSettings, recipe_folder: Path | None) -> EvaluationFiles:
    """Raises: UserError naming every file that is missing or wrong."""
    mistakes = [
        f"evaluation.{'.'.join(field)}: {text}" for field, text in misfits(settings, recipe_folder)
    ]
    if mistakes:
        raise UserError("\n".join(mistakes))
    folder = _path(settings.metrics_folder, recipe_folder)
    lm_eval, retention = settings.lm_eval, settings.retention
    return EvaluationFiles(
        metrics_folder=folder,
        custom={} if folder is None else modules_of(folder),
        json_schema=_path(settings.json_schema, recipe_folder),
        embedding_model=_path(settings.embedding_model, recipe_folder),
        retention=_path(None if retention is None else retention.path, recipe_folder),
        lm_eval_tasks=_path(None if lm_eval is None else lm_eval.include_path, recipe_folder),
    )


def misfits(
    settings: EvaluationSettings, recipe_folder: Path | None
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Field of the section, and what is wrong with what it names, with the way out."""
    if (folder := _path(settings.metrics_folder, recipe_folder)) is not None:
        here = modules_of(folder) if folder.is_dir() else {}
        if not folder.is_dir():
            yield ("metrics_folder",), f"there is no folder {folder}. {RELATIVE}."
        else:
            wrong = list(mistakes_of_modules(folder, here))
            yield from ((("metrics_folder",), text) for text in wrong)
            if not here and not wrong:
                yield ("metrics_folder",), f"{folder} holds no metric module (`<name>.py`)."
        for number, rule in enumerate(settings.gate):
            name = (rule.metric or "").removeprefix(CUSTOM)
            if here and (rule.metric or "").startswith(CUSTOM) and name not in here:
                yield (
                    ("gate", str(number), "metric"),
                    f"{folder} holds no module `{name}`, but {', '.join(here)}.",
                )
    if (schema := _path(settings.json_schema, recipe_folder)) is not None:
        try:
            mistake = schema_mistake(json.loads(schema.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            yield ("json_schema",), f"{schema} cannot be read as JSON: {error}. {RELATIVE}."
        else:
            if mistake:
                yield ("json_schema",), f"{schema} {mistake}."
    if (model := _path(settings.embedding_model, recipe_folder)) is not None:
        missing = [n for n in ("config.json", "tokenizer.json") if not (model / n).is_file()]
        if missing:
            yield (
                ("embedding_model",),
                f"{model} is no folder of a model: it has no {' and no '.join(missing)}. {RELATIVE}.",
            )
    if settings.retention is not None:
        file = _path(settings.retention.path, recipe_folder)
        if file is not None and not file.is_file():
            yield ("retention", "path"), f"there is no file {file}. {RELATIVE}."
    if settings.lm_eval is not None:
        yield from _lm_eval_misfits(settings, recipe_folder)


def _lm_eval_misfits(
    settings: EvaluationSettings, recipe_folder: Path | None
) -> Iterator[tuple[tuple[str, ...], str]]:
    assert settings.lm_eval is not None
    if find_spec(LM_EVAL) is None:
        yield (
            ("lm_eval",),
            "the package lm_eval is not installed here. Install it with `pip install lm_eval`, or delete "
            "this section.",
        )
    folder = _path(settings.lm_eval.include_path, recipe_folder)
    if folder is not None and not folder.is_dir():
        yield ("lm_eval", "include_path"), f"there is no folder {folder}. {RELATIVE}."


def _path(named: str | None, recipe_folder: Path | None) -> Path | None:
    if named is None:
        return None
    path = expanded(named)
    return path if path.is_absolute() or recipe_folder is None else recipe_folder / path


def _sha256(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _counts(p, path))
    digest = hashlib.sha256()
    for file in files:
        name: Any = file.name if path.is_file() else file.relative_to(path).as_posix()
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def _counts(path: Path, folder: Path) -> bool:
    """Whether it is a file of the user's: not what Python made of it, nor an editor's or a system's."""
    steps = path.relative_to(folder).parts
    return path.is_file() and not any(s.startswith(".") or s == "__pycache__" for s in steps)
