"""What `quality.py` trains on and how: three small tasks of real text, one training by given settings."""

import ast
import json
import random
import tempfile
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from train_work import NO_LOSS, write_tokens
from transformers import AutoTokenizer

from tasks.dataset.reading.python_code import cut
from tasks.dataset.reading.python_files import python_files
from tasks.dataset.reading.python_source import PythonCounts, read_python
from tasks.dataset.source_settings import PythonSource
from tasks.training import loading
from tasks.training.engine import build_trainer, read_rows, training_as_configured
from tasks.training.job import TrainingJob

BASE = Path(__file__).resolve().parent.parent / "examples" / "starter"
BATCH, STEPS = 16, 45
"""Rows of an optimizer step, and steps of a training."""
EVERY = 9
"""Steps from one look at the held-out rows to the next."""
ROWS = BATCH * STEPS
"""Each is read once: nothing is learned by heart."""
HELD_OUT, SPARE = 96, 48
LONGEST = 64
"""Tokens. What is longer is left out, so that a training takes seconds."""
CODE_CHARACTERS = 120
LIBRARY_MODULES = 10
"""At least so many has a library that is a name to choose: some of them are held out, and never all."""

Row = dict[str, Any]
Item = tuple[str, str, str]
"""Module, question, answer."""


@dataclass(frozen=True)
class Way:
    """Settings of a training."""

    peft: dict[str, Any]
    training: dict[str, Any]
    all_tokens: bool = False
    """Whether the questions are learned, too."""


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    curve: list[tuple[int, float]]
    """Steps made, and held-out answer loss then."""
    seconds: float = field(compare=False)

    @property
    def loss(self) -> float:
        return self.curve[-1][1]


def train(
    tokens: Path, seed: int, way: Way, *, steps: int = STEPS, every: int | None = None
) -> Trained:
    """Train on a folder that `write_task` made; look at its held-out rows at the end.

    With `every`, before and after each so many steps, too.
    """
    with tempfile.TemporaryDirectory() as working:
        job = TrainingJob(
            base=BASE,
            base_name="starter",
            base_commit=None,
            tokens=tokens / ("everything" if way.all_tokens else "answers"),
            working=Path(working),
            seed=seed,
            peft_config=way.peft,
            training_config=way.training
            | {
                "max_steps": steps,
                # More and smaller pieces of a step only take longer.
                "per_device_train_batch_size": BATCH // 2,
                "gradient_accumulation_steps": 2,
                "save_strategy": "no",
                "eval_strategy": "steps",
                "eval_steps": every or steps,
                "eval_on_start": every is not None,
                # One batch: its mean over answer tokens is that of all rows.
                "per_device_eval_batch_size": HELD_OUT,
            },
        )
        rows = read_rows(job.tokens / "train.parquet")
        trainer = build_trainer(job, rows, loading.choose_precision("auto"))
        began = time.perf_counter()
        with training_as_configured(trainer):
            trainer.train()
        seconds = time.perf_counter() - began
    history = trainer.state.log_history
    return Trained([(h["step"], h["eval_loss"]) for h in history if "eval_loss" in h], seconds)


def write_task(task: str, seed: int, folder: Path) -> Path:
    """Folders as the tokenization stage leaves them; held-out rows always have labels at answers alone.

    `answers` and `everything` differ in what of the training rows is labelled. `spare` holds, in place
    of held-out rows, some more of the modules that are trained on.
    """
    rows, spare, held_out = _token_rows(task, seed)
    everything = [row | {"labels": row["input_ids"]} for row in rows]
    for name, learned, judged in (
        ("answers", rows, held_out),
        ("everything", everything, held_out),
        ("spare/answers", rows, spare),
    ):
        write_tokens(judged, folder / name)
        write_tokens(learned, folder / "learned")
        (folder / "learned" / "train.parquet").replace(folder / name / "train.parquet")
    return folder


def _token_rows(task: str, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows to train on, spare ones of the same modules, and held-out ones of other modules."""
    tokenizer = AutoTokenizer.from_pretrained(BASE, local_files_only=True)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    items = list(_items(task))
    rng = random.Random(f"{task}/{seed}")
    rng.shuffle(items)
    modules = sorted({module for module, _, _ in items})
    aside = set(rng.sample(modules, len(modules) // 5))
    seen: list[Row] = []
    held_out: list[Row] = []
    for module, question, answer in items:
        side, most = (held_out, HELD_OUT) if module in aside else (seen, ROWS + SPARE)
        if len(side) == most:
            continue
        turns = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tail = [*tokenizer(answer, add_special_tokens=False)["input_ids"], end]
        if len(head) + len(tail) <= LONGEST:
            side.append({"input_ids": head + tail, "labels": [NO_LOSS] * len(head) + tail})
    assert (len(seen), len(held_out)) == (ROWS + SPARE, HELD_OUT), task
    return seen[:ROWS], seen[ROWS:], held_out


@cache
def _items(task: str) -> Sequence[Item]:
    return sorted(set(TASKS[task]()))


def docstrings() -> Iterator[Item]:
    """Documented code to its docstring's first paragraph: the quickstart's rows."""
    source = _source()
    for row in read_python(source, Path(), PythonCounts()):
        yield row.group, row.messages[0]["content"], row.messages[1]["content"]


def libraries() -> Iterator[Item]:
    """A function to the name of the library that it is from."""
    sizes = Counter(_library(module) for module in {module for module, _, _ in _functions()})
    for module, _, code in _functions():
        name = _library(module)
        if "/" in module and sizes[name] >= LIBRARY_MODULES:
            yield module, f"Which library is this from?\n\n{cut(code, CODE_CHARACTERS)}", name


def signatures() -> Iterator[Item]:
    """A function's first line to a JSON object of its name and parameters."""
    for module, node, _ in _functions():
        line = f"def {node.name}({ast.unparse(node.args)})"
        yield module, f"Write this signature as JSON.\n\n{line}", json.dumps(_described(node))


TASKS = {"docstring": docstrings, "library": libraries, "json": signatures}
"""Free text, one of nine labels (Python 3.11), and a strict form."""


@cache
def _functions() -> Sequence[tuple[str, ast.FunctionDef, str]]:
    """Module, tree, and source without indentation of every function of the standard library."""
    found = []
    for file in python_files(_source(), Path()):
        text = file.path.read_text(encoding="utf-8", errors="replace")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        lines = text.split("\n")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
                found.append((file.name, node, code))
    return found


def _described(node: ast.FunctionDef) -> dict[str, Any]:
    given = node.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    optional = len(given.defaults) + sum(value is not None for value in given.kw_defaults)
    return {
        "function": node.name,
        "parameters": names,
        "required": len(names) - optional,
        "variable": given.vararg is not None or given.kwarg is not None,
    }


def _library(module: str) -> str:
    return module.removesuffix(".py").split("/")[0]


def _source() -> PythonSource:
    return PythonSource(type="python_source", package="stdlib", max_code_characters=CODE_CHARACTERS)
