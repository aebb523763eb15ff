"""Merge an adapter in this fresh process, and compare what was saved with the adapter on its base."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from tasks.errors import UserError
from tasks.export.job import Merged, MergeJob
from tasks.registration.chat_model import ChatModel
from tasks.worker import main, write_result

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_log = logging.getLogger(__name__)


def merge(job: MergeJob) -> None:
    """Write the merged model to the job's draft, then the result.

    Everything is computed in float32 on the CPU, with one copy of the model in memory at a time: what
    differs then is the rounding of the merged weights, and not that of anybody's arithmetic.
    """
    transformers.utils.logging.disable_progress_bar()
    fixture = json.loads((job.fixture / "fixture.json").read_text(encoding="utf-8"))
    rows: list[list[int]] = fixture["input_ids"]
    recorded = load_file(job.fixture / "fixture.safetensors")["logits"]
    adapted, plain = _reference(job, rows)
    if problem := _broken(adapted, "the adapter on its base"):
        write_result(job.result, Merged(problem=problem))
        return
    if problem := _save_merged(job):
        write_result(job.result, Merged(problem=problem))
        return
    merged = _logits_of_saved(job.draft, rows)
    if problem := _broken(merged, f"the merged model in {job.dtype}"):
        write_result(job.result, Merged(problem=problem))
        return
    write_result(
        job.result,
        Merged(
            rows=len(rows),
            positions=sum(map(len, rows)),
            largest_difference=_largest(merged, adapted),
            largest_logit=max(logits.abs().max().item() for logits in adapted),
            adapter_effect=_largest(adapted, plain),
            difference_from_training=_from_training(adapted, recorded),
        ),
    )


def _reference(
    job: MergeJob, rows: list[list[int]]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits with and without the adapter, each row (tokens, vocabulary), by the version's own code.

    It checks the adapter against its manifest, the base against its sha256, and that every tensor
    found its place.
    """
    chat = ChatModel()
    config = {
        **job.loading,
        "base": str(job.base),
        "dtype": "float32",
        "device": "cpu",
        "quantization": "none",
    }
    artifacts = {"adapter": str(job.adapter), "manifest": str(job.manifest)}
    try:
        chat.load_context(SimpleNamespace(model_config=config, artifacts=artifacts))
    except RuntimeError as error:
        # chat_model.py's own words: the adapter or the base is not the recorded one.
        raise UserError(str(error)) from error
    return [chat.logits(ids) for ids in rows], [chat.base_logits(ids) for ids in rows]


def _save_merged(job: MergeJob) -> str | None:
    """Merge in float32, round once, save; what went wrong in words, or None."""
    model: Any = PeftModel.from_pretrained(_load(job.base), str(job.adapter), is_trainable=False)
    merged: Any = model.merge_and_unload(safe_merge=True).to(_DTYPES[job.dtype])
    bad = [name for name, tensor in merged.named_parameters() if not tensor.isfinite().all()]
    if bad:
        return (
            f"{len(bad)} merged weights cannot be written in {job.dtype} (first: {bad[0]}): they are NaN "
            "or beyond its largest number. bf16 and fp32 reach further than fp16."
        )
    merged.save_pretrained(job.draft)
    return None


def _logits_of_saved(folder: Path, rows: list[list[int]]) -> list[torch.Tensor]:
    """Of the files that were written, and not of what was in memory when they were."""
    model = _load(folder)
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in rows]


def _load(folder: Path) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    # A base's sampling habits, sometimes contradictory, would keep the model from being saved.
    model.generation_config = transformers.GenerationConfig()
    return model.eval()


def _largest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def _from_training(adapted: list[torch.Tensor], recorded: torch.Tensor) -> float | None:
    """The training recorded the last positions only; None where it recorded something else."""
    if len(recorded) != len(adapted) or recorded.shape[-1] != adapted[0].shape[-1]:
        return None
    last = recorded.shape[1]
    difference = _largest([logits[-last:] for logits in adapted], list(recorded.float()))
    return difference if torch.tensor(difference).isfinite() else None


def _broken(logits: list[torch.Tensor], whose: str) -> str | None:
    """NaN is neither above nor below a tolerance: it is told before anything is compared."""
    bad = sum(int((~row.isfinite()).sum()) for row in logits)
    return f"{bad} logits of {whose} are NaN or infinite." if bad else None


if __name__ == "__main__":
    main(MergeJob, merge)
