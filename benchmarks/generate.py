"""How fast test prompts are answered, against `generate` row by row and in batches as they come."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Result, main, ratio
from tokenizers import Tokenizer
from train_work import texts
from transformers import AutoModelForCausalLM, GenerationConfig

from tasks.cores import available_cores
from tasks.evaluation.greedy import Answer, greedy
from tasks.evaluation.settings import EvaluationSettings

STARTER = Path(__file__).resolve().parent.parent / "examples" / "starter"
BATCH = EvaluationSettings().batch_size
ROWS, PAIRS = 192, 5
QUICK_ROWS = 64
LONGEST = 128
"""Tokens that an answer may have."""


class Work:
    """Real functions to be documented by the shipped base in fp32: skewed prompts and skewed answers.

    Most answers of this base end within thirty tokens; about a third of them run into the limit.
    """

    def __init__(self, rows: int) -> None:
        tokenizer = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
        found = tokenizer.encode_batch([p for p, _ in texts(rows)], add_special_tokens=False)
        self.prompts = [one.ids for one in found]
        self.model: Any = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32).eval()
        self.model.generation_config = GenerationConfig()
        config = json.loads((STARTER / "generation_config.json").read_text(encoding="utf-8"))
        self.stops: list[int] = config["eos_token_id"]

    def ours(self) -> list[Answer]:
        rooms = [LONGEST] * len(self.prompts)
        return greedy(self.model, self.prompts, rooms, BATCH, self.stops)

    def row_by_row(self) -> list[Answer]:
        return self._generate(1)

    def left_padded(self) -> list[Answer]:
        return self._generate(BATCH)

    @torch.inference_mode()
    def _generate(self, size: int) -> list[Answer]:
        """The library's own way: rows in their order, each batch until its last row is done."""
        pad, answers = self.stops[0], []
        for start in range(0, len(self.prompts), size):
            rows = self.prompts[start : start + size]
            width = max(map(len, rows))
            gaps = [width - len(row) for row in rows]
            output = self.model.generate(
                input_ids=torch.tensor([[pad] * g + r for g, r in zip(gaps, rows, strict=True)]),
                attention_mask=torch.tensor([[0] * g + [1] * (width - g) for g in gaps]),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=LONGEST,
                    eos_token_id=self.stops,
                    pad_token_id=pad,
                ),
            )
            answers += [self._cut(ids) for ids in output[:, width:].tolist()]
        return answers

    def _cut(self, ids: Sequence[int]) -> Answer:
        for place, token in enumerate(ids):
            if token in self.stops:
                return list(ids[:place]), token
        return list(ids), None


def timed(work: Callable[[], list[Answer]]) -> tuple[float, list[Answer]]:
    started = time.perf_counter()
    answers = work()
    return time.perf_counter() - started, answers


def measure(quick: bool) -> Result:
    """Interleaved on the same rows, with the recipe's default batch size."""
    torch.set_num_threads(available_cores())
    work = Work(QUICK_ROWS if quick else ROWS)
    seconds: dict[str, list[float]] = {"ours": [], "row_by_row": [], "left_padded": []}
    found: dict[str, list[Answer]] = {}
    for _ in range(1 if quick else PAIRS):
        for name in seconds:
            taken, found[name] = timed(getattr(work, name))
            seconds[name].append(taken)
    result = Result("generate", ("torch", "transformers"))
    for name in ("row_by_row", "left_padded"):
        result.ratios[f"vs_{name}"] = ratio(seconds[name], seconds["ours"])
    result.equal = found["ours"] == found["row_by_row"] == found["left_padded"]
    tokens = sum(len(ids) for ids, _ in found["ours"])
    result.values = {
        "rows": float(len(work.prompts)),
        "answer_tokens": float(tokens),
        "tokens_per_second": tokens / min(seconds["ours"]),
        "row_by_row_tokens_per_second": tokens / min(seconds["row_by_row"]),
    }
    return result


if __name__ == "__main__":
    main(measure, __doc__ or "")
