"""The files of a team's own working folder: a recipe made for its data, .gitignore, README."""

import filecmp
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import looks_local
from tasks.errors import UserError
from tasks.files import expanded
from tasks.share import shared

STARTER = "../starter"
"""The default base as the recipe names it: a copy of the shipped starter model in the folder."""
TARGET_TEST_ROWS = 200
"""Test rows that the share of the split aims at; fewer make intervals too wide to tell anything."""

_GITIGNORE = """\
# State of loraline: stage outputs, databases, logs.
.loraline/
.venv/
"""


@dataclass(frozen=True)
class Data:
    """A file of rows that a recipe is made for."""

    path: Path
    kind: str
    """How the file is written: `jsonl`, `csv.gz`."""
    format: str
    """Name of the detected chat format."""
    columns: tuple[str, ...]
    ignored: tuple[str, ...]
    """Columns that no conversation is made of."""
    lines: int


@dataclass(frozen=True)
class Written:
    """What became of the folder."""

    recipe: Path
    kept: tuple[Path, ...]
    """Files that were there before and are as they were."""


def write_working_folder(
    folder: Path, *, name: str, base: str | None, data: Data | None, context: int | None = None
) -> Written:
    """Write the folder; `base` None means a copy of the starter model.

    `context` is the longest row in tokens that the base takes, None where that is not known.

    Nothing that exists is changed: a README, a .gitignore and a starter of the same bytes stay.

    Raises: UserError when the recipe or another starter is in the way; nothing is written then.
    """
    recipe = folder / "recipes" / f"{name}.yaml"
    schema = recipe.with_name("recipe.schema.json")
    texts = {
        recipe: recipe_text(recipe, name=name, base=base, data=data, context=context),
        schema: (shared("recipes") / schema.name).read_text(encoding="utf-8"),
        folder / ".gitignore": _GITIGNORE,
        folder / "README.md": _readme(name),
    }
    starter = folder / "starter"
    same_starter = base is None and starter.is_dir() and _same_files(shared("starter"), starter)
    in_the_way = [recipe] if recipe.exists() else []
    if base is None and starter.exists() and not same_starter:
        in_the_way.append(starter)
    if in_the_way:
        names = " and ".join(str(path) for path in in_the_way)
        raise UserError(
            f"In the way, and not overwritten: {names}. "
            "Choose another --name or folder, or move it away."
        )
    recipe.parent.mkdir(parents=True, exist_ok=True)
    kept = [path for path in texts if path.exists()]
    if base is None and not same_starter:
        shutil.copytree(shared("starter"), starter, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in texts.items():
        if path not in kept:
            path.write_text(text, encoding="utf-8")
    return Written(recipe, tuple(kept))


def recipe_text(
    recipe: Path, *, name: str, base: str | None, data: Data | None, context: int | None = None
) -> str:
    """The recipe's YAML, with a comment at each knob that a newcomer turns first.

    Without data and base it is the shipped quickstart, whose values are tuned for the starter.
    `context` is the base's in tokens, where it is known.
    """
    if data is None and base is None:
        return _quickstart(recipe, name)
    longest = 512 if base is None else min(2048, context or 2048)
    return "\n".join(
        [
            f"# loraline run {recipe.parent.name}/{recipe.name}",
            "# yaml-language-server: $schema=./recipe.schema.json",
            f"name: {name}  # the registered model, and the salt of the split",
            "seed: 42",
            *_base(recipe, base),
            "dataset:",
            *_dataset(recipe, data),
            *_tokenization(longest),
            *_training(base),
            *_evaluation(data),
            "promotion:",
            "  # manual: a person moves the alias `champion`; automatic: a run whose gate passes does.",
            "  policy: manual",
            "# schedule:",
            '#   cron: "0 2 * * *"  # every night at two',
            "#   timezone: Europe/Berlin",
            "",
        ]
    )


def _quickstart(recipe: Path, name: str) -> str:
    text = (shared("recipes") / "quickstart.yaml").read_text(encoding="utf-8")
    lines = {
        r"# loraline run .*": f"# loraline run {recipe.parent.name}/{recipe.name}",
        r"name:.*": f"name: {name}",
        r"base:.*": "\n".join(_base(recipe, None)),
    }
    for pattern, line in lines.items():
        literal = line.replace("\\", r"\\")
        text, replaced = re.subn(rf"(?m)^{pattern}$", literal, text, count=1)
        assert replaced, f"the shipped quickstart has no line {pattern}"
    return text


def _same_files(shipped: Path, copy: Path) -> bool:
    names = [path.name for path in shipped.iterdir() if path.is_file()]
    same, _, _ = filecmp.cmpfiles(shipped, copy, names, shallow=False)
    return len(same) == len(names)


def _base(recipe: Path, base: str | None) -> list[str]:
    if base is None:
        return [
            "# A model of four million parameters that comes with loraline: it shows that the way works.",
            f"base: {STARTER}",
            "# The model of the Phi-3 examples, for a GPU with 16 GB or more:",
            "# base: microsoft/Phi-3-mini-4k-instruct",
        ]
    if names_folder(base):
        return [f"base: {_scalar(_relative(expanded(base), recipe))}"]
    return [
        "# A Hub id; the first run writes the commit that it stands for beside this file (.lock).",
        f"base: {_scalar(base)}",
    ]


def names_folder(base: str) -> bool:
    """Whether --base names a folder and not a Hub id: one that is there needs no `./`."""
    return looks_local(base) or Path(base).is_dir()


def _dataset(recipe: Path, data: Data | None) -> list[str]:
    if data is None:
        return [
            "  sources:",
            "    # One conversation for each documented function: its code, and its docstring's first",
            "    # paragraph. `path: ../src` instead of `package` reads a folder of your own.",
            "    - type: python_source",
            "      package: stdlib",
            "      max_rows: 6000",
            "  split:",
            "    test: 0.05  # share of groups that are only ever evaluated",
            "    max_test_rows: 300",
        ]
    used = [column for column in data.columns if column not in data.ignored]
    share = min(0.2, max(0.02, TARGET_TEST_ROWS / max(data.lines, 1)))
    return [
        "  sources:",
        f"    # Detected: {data.format}, from {_comment(', '.join(used))}.",
        f"    - type: {'jsonl' if data.kind == 'jsonl' else 'files'}",
        f"      path: {_scalar(_relative(data.path, recipe))}",
        "      # group: customer_id  # a column whose rows must stay on one side of the split",
        "  split:",
        f"    test: {share:.2g}  # share of groups that are only ever evaluated",
        "    max_test_rows: 500",
    ]


def _tokenization(longest: int) -> list[str]:
    return [
        "tokenization:",
        f"  max_length: {longest}  # tokens; an answer is never cut",
        "  long_rows: drop  # counted in the stage's summary; `error` refuses the data instead",
    ]


def _training(base: str | None) -> list[str]:
    rate = "2.0e-3  # a small model takes larger steps" if base is None else "2.0e-4"
    return [
        "training:",
        "  peft_config:",
        "    r: 16  # size of the adapter; 8 to 64",
        "    target_modules: all-linear",
        "  training_config:",
        f"    learning_rate: {rate}",
        "    num_train_epochs: 2  # more than three rarely helps",
        f"    per_device_train_batch_size: {8 if base is None else 4}",
    ]


def _evaluation(data: Data | None) -> list[str]:
    return [
        "evaluation:",
        f"  max_new_tokens: {64 if data is None else 128}  # longest answer",
        "  gate:",
        "    # Without a champion, `champion` means the base. Raise the bar as the data grows.",
        "    - {metric: loss, against: champion, min_gain: 0.0}",
    ]


def _readme(name: str) -> str:
    return f"""\
# {name}

Retrains a LoRA adapter with loraline. Two commands:

    loraline check recipes/{name}.yaml    # data, trained tokens, parameters, memory; trains nothing
    loraline run recipes/{name}.yaml      # train, evaluate, register the adapter as a version

`loraline ui` then shows the runs (Prefect) and the versions (MLflow) in the browser,
`loraline versions {name}` lists the versions here, and
`loraline predict models:/{name}/1 --prompt "..."` answers with the first.
"""


def _relative(path: Path, recipe: Path) -> str:
    """`path` as the recipe names it: relative to the recipe's folder, and recognisable as a path."""
    text = Path(os.path.relpath(path.resolve(), recipe.parent.resolve())).as_posix()
    return text if text.startswith("../") else f"./{text}"


def _comment(text: str) -> str:
    """`text` as part of a comment: a column's name may hold anything, a line break too."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= 80 else plain[:77] + "..."


def _scalar(value: Any) -> str:
    """A YAML scalar, quoted where YAML would read something else."""
    text = str(value)
    return text if re.fullmatch(r"[A-Za-z0-9./_-]+", text) else json.dumps(text, ensure_ascii=False)
