"""Read dictionaries written for older libraries: removed names become today's, with a warning each.

The names are those of transformers 4 (TrainingArguments), TRL before 1.0 (SFTConfig and SFTTrainer)
and the Phi-3 LoRA samples; docs/adr/0003-pasted-dictionaries.md says what is dropped and why.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.recipe_file import Document, Loc
from tasks.training import owned
from tasks.training.old_names import DTYPES, REMOVED, RENAMED, SECRETS

TRAINING: Loc = ("training", "training_config")
PEFT: Loc = ("training", "peft_config")
MAX_LENGTH: Loc = ("tokenization", "max_length")
DTYPE: Loc = ("training", "dtype")


def translate(document: Document) -> list[str]:
    """Rewrite the document's two dictionaries in place; return the warnings.

    What cannot be translated without guessing becomes a mistake of the document.
    """
    translation = _Translation(document)
    if isinstance(document.get(TRAINING), dict):
        translation.max_length()
        translation.precision()
        translation.warmup_ratio()
        translation.switches()
        translation.names()
        translation.tokenizer()
        translation.drop_removed()
        translation.drop_owned(TRAINING, owned.of(str(document.get(("training", "method"), "sft"))))
    if isinstance(document.get(PEFT), dict):
        translation.task_type()
        translation.drop_owned(PEFT, owned.PEFT)
    return translation.warnings


@dataclass
class _Setting:
    """A field that was found under its old name."""

    loc: Loc
    value: Any
    place: str

    @property
    def name(self) -> str:
        return str(self.loc[-1])


class _Translation:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.warnings: list[str] = []

    def max_length(self) -> None:
        """`max_seq_length`, which TRL has removed, is what `tokenization.max_length` is here."""
        old = self._take("max_seq_length")
        if old is not None:
            self._move(old, MAX_LENGTH, old.value, f"the length of a row is set once, {_IN_TOKENS}")

    def precision(self) -> None:
        """`bf16`, `fp16` and `torch_dtype` are what `training.dtype` is here."""
        old = [s for s in (self._take("bf16"), self._take("fp16")) if s is not None]
        wrong = [s for s in old if not isinstance(s.value, bool)]
        for setting in wrong:
            self._mistake(setting, "must be true or false")
        chosen = [s for s in old if s.value is True]
        if len(chosen) == 2:
            self._mistake(chosen[1], f"`bf16` ({chosen[0].place}) and `fp16` exclude each other")
        elif old and not wrong:
            dtype = {"bf16": "bfloat16", "fp16": "float16"}[chosen[0].name] if chosen else "float32"
            for setting in old:
                if not chosen or setting is chosen[0]:
                    self._move(setting, DTYPE, dtype, "one field decides the arithmetic")
                else:
                    self._drop(setting, f"`training.dtype: {dtype}` says it")
        for name in ("torch_dtype", "dtype"):
            named = self._take(name)
            if named is None:
                continue
            known = DTYPES.get(str(named.value).removeprefix("torch."))
            if known is None:
                self._mistake(named, f"must be one of {', '.join(sorted(DTYPES))}")
            else:
                self._move(named, DTYPE, known, "one field decides the arithmetic")

    def warmup_ratio(self) -> None:
        """transformers 5 reads a `warmup_steps` below 1 as a share of all steps."""
        old = self._take("warmup_ratio")
        if old is None:
            return
        steps = self.document.get((*TRAINING, "warmup_steps"))
        if isinstance(old.value, bool) or not isinstance(old.value, int | float):
            self._mistake(old, "must be a number")
        elif not 0 <= old.value < 1:
            self._mistake(old, "is a share of all steps, from 0 to below 1")
        elif steps:
            # As transformers 4 did: a number of steps overrides the share.
            self._drop(old, f"`warmup_steps: {steps}` overrides it")
        else:
            self._move(
                old, (*TRAINING, "warmup_steps"), old.value, "below 1 it is a share of steps"
            )

    def switches(self) -> None:
        """Switches that became one value of a choice."""
        for name, (field, value) in {
            "group_by_length": ("train_sampling_strategy", "group_by_length"),
            "adafactor": ("optim", "adafactor"),
        }.items():
            old = self._take(name)
            if old is None:
                continue
            if old.value is True:
                self._move(old, (*TRAINING, field), value, "it became a choice")
            elif old.value in (False, None):
                self._drop(old, "it is off unless asked for")
            else:
                self._mistake(old, "must be true or false")
        old = self._take("loss_type", only_if=lambda value: value == "chunked_nll")
        if old is not None:
            self._move(old, (*TRAINING, "loss_type"), "nll", "the two are one loss")

    def names(self) -> None:
        """Fields that only changed their name."""
        for name, new in RENAMED.items():
            old = self._take(name)
            if old is not None:
                self._move(old, (*TRAINING, new), old.value, "the libraries renamed it")

    def tokenizer(self) -> None:
        """An argument of the trainer that samples write beside its configuration."""
        for name in ("tokenizer", "processing_class"):
            old = self._take(name)
            if old is None:
                continue
            base = self.document.get(("base", "model"), self.document.get(("base",)))
            if old.value in (None, "tokenizer", base):
                self._drop(old, "the base model's own tokenizer is used")
            else:
                self._mistake(old, "the base model's own tokenizer is used. Delete the line")

    def task_type(self) -> None:
        """`TaskType.CAUSAL_LM` is how Python writes it."""
        loc = (*PEFT, "task_type")
        value = self.document.get(loc)
        if isinstance(value, str) and value.startswith("TaskType."):
            new = value.removeprefix("TaskType.")
            old = _Setting(loc, value, self.document.place(loc))
            self.document.remove(loc)
            self._move(old, loc, new, "YAML names no Python class")

    def drop_removed(self) -> None:
        """Fields without a successor."""
        for name, (why, droppable) in REMOVED.items():
            old = self._take(name)
            if old is None:
                continue
            if droppable is None or any(_same(old.value, value) for value in droppable):
                self._drop(old, why)
            else:
                shown = "" if name in SECRETS else f" (given: {_yaml(old.value)})"
                self._mistake(old, f"no library reads this any more{shown}: {why}")

    def drop_owned(self, section: Loc, ours: dict[str, owned.Owned]) -> None:
        """Fields of the pipeline, where they ask for what happens anyway or are the samples' own."""
        seed = self.document.get(("seed",), 42)
        for name, field in ours.items():
            value = self.document.get((*section, name), _ABSENT)
            if value is _ABSENT:
                continue
            same_seed = name in ("seed", "data_seed") and value == seed
            if same_seed or owned.is_harmless(field, value):
                setting = self._take(name, section)
                assert setting is not None
                self._drop(setting, field.instead)

    def _take(
        self,
        name: str,
        section: Loc = TRAINING,
        only_if: Callable[[Any], bool] = lambda value: True,
    ) -> _Setting | None:
        loc = (*section, name)
        value = self.document.get(loc, _ABSENT)
        if value is _ABSENT or not only_if(value):
            return None
        place = self.document.place(loc)
        self.document.remove(loc)
        return _Setting(loc, value, place)

    def _move(self, old: _Setting, new: Loc, value: Any, why: str) -> None:
        here = self.document.get(new, _ABSENT)
        line = f"`{new[-1]}: {_yaml(value)}`"
        where = f" under `{'.'.join(map(str, new[:-1]))}`" if new[:-1] != old.loc[:-1] else ""
        if here is not _ABSENT and here is not None and not _same(here, value):
            self._mistake(
                old,
                f"says {line}{where}, but {self.document.place(new)} says "
                f"`{new[-1]}: {_yaml(here)}`. Keep one",
            )
            return
        if here is _ABSENT or here is None:
            try:
                self.document.put(new, value, old.place)
            except LookupError as error:
                self._mistake(old, f"cannot be read as {line}{where}: {error.args[0]}")
                return
        self._warn(old, f"{why}. Write {line}{where} instead")

    def _drop(self, old: _Setting, why: str) -> None:
        self._warn(old, f"dropped: {why}. Delete the line")

    def _warn(self, old: _Setting, text: str) -> None:
        self.warnings.append(self._line(old, text))

    def _mistake(self, old: _Setting, text: str) -> None:
        self.document.mistakes.append(self._line(old, text))

    @staticmethod
    def _line(old: _Setting, text: str) -> str:
        return f"{old.place}: {'.'.join(map(str, old.loc))}: {text}."


_ABSENT: Any = object()
_IN_TOKENS = "where conversations become tokens"


def _same(value: Any, other: Any) -> bool:
    # `False` is not `0` here: each was written by somebody who meant it.
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _yaml(value: Any) -> str:
    """The value as one would write it on a YAML line."""
    return value if isinstance(value, str) and value else json.dumps(value)
