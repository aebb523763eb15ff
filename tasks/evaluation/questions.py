"""What every model is asked: token ids, references, and the hash that tells one set of rows from another."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import UserError
from tasks.evaluation.answering import NO_LOSS
from tasks.evaluation.models import room
from tasks.evaluation.rejected import Rejected

DESIRABLE = "desirable"


@dataclass(frozen=True)
class Questions:
    """Rows with a good answer, in the order of the file."""

    table: dict[str, list[Any]]
    """`id`, `prompt`, `reference`, `label`, `input_ids`, `labels`, `prompt_length`, ..."""
    bad_answers: int
    """Rows that were left out, since their answer was judged bad: nothing to be measured by."""

    @classmethod
    def of(cls, read: pa.Table) -> "Questions":
        """Raises: UserError when no row holds a good answer."""
        good = read if DESIRABLE not in read.column_names else read.filter(_no_bad_answer(read))
        if not good.num_rows:
            raise UserError(
                f"None of the {read.num_rows:,} test rows holds a good answer to measure by. Add good "
                "answers, or give the recipe a dataset.holdout with some."
            )
        return cls(good.to_pydict(), read.num_rows - good.num_rows)

    def __len__(self) -> int:
        return len(self.table["id"])

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of each row's prompt."""
        pairs = zip(self.table["input_ids"], self.table["prompt_length"], strict=True)
        return [ids[:length] for ids, length in pairs]

    @property
    def rejected(self) -> Rejected | None:
        """The worse answers, where rows are pairs."""
        return Rejected.of(self.table)

    @property
    def prompts_sha256(self) -> str:
        """Over the prompts' token ids."""
        return _sha256(self.prompts)

    @property
    def sha256(self) -> str:
        """Over all that predictions depend on: prompts, references' tokens, worse answers."""
        parts = [self.prompts, self.table["input_ids"], self.table["labels"]]
        parts.append([ids or [] for ids in self.table.get("rejected_ids", [])])
        return hashlib.sha256("".join(map(_sha256, parts)).encode()).hexdigest()

    def rooms(self, config: Any, max_new_tokens: int) -> list[int]:
        """Each row's longest answer in tokens, by the model's context."""
        return [room(config, len(prompt), max_new_tokens) for prompt in self.prompts]

    def columns(self) -> dict[str, list[Any]]:
        """What the predictions say of the rows themselves."""
        columns: dict[str, list[Any]] = {
            name: self.table[name] for name in ("id", "prompt", "reference", "label")
        }
        columns["prompt_tokens"] = list(self.table["prompt_length"])
        columns["trained_tokens"] = [
            sum(label != NO_LOSS for label in labels[1:]) for labels in self.table["labels"]
        ]
        if (rejected := self.rejected) is not None:
            columns["rejected_tokens"] = rejected.tokens
        return columns


def _sha256(rows: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray([len(row), *row], dtype="<i8").tobytes())
    return digest.hexdigest()


def _no_bad_answer(table: pa.Table) -> Any:
    """Whether each row's answer is one to be measured by: a good one, or the better one of a pair."""
    return pc.fill_null(table[DESIRABLE], True)
