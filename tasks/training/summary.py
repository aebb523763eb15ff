"""What a person reads about a training: `summary.md`."""

import base64
from pathlib import Path
from typing import Any

from tasks.durations import duration
from tasks.methods import Method
from tasks.training.job import TrainingResult

LARGEST_PICTURE_BYTES = 40_000
"""A larger picture stays beside the summary: the summary travels to Prefect's database."""
_SHOWN = (
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "warmup_steps",
    "optim",
)
_UNITS: dict[Method, str] = {
    "sft": " nats per answer token",
    "pretraining": " nats per token",
    "dpo": " (of DPO)",
    "orpo": " (of ORPO: nats per token of the better answers, and of the odds)",
    "kto": " (of KTO)",
}
_SHOWN_PEFT = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")


def summary(
    result: TrainingResult,
    *,
    method: Method = "sft",
    peft_config: dict[str, Any],
    training_config: dict[str, Any],
    quantization: str,
    seed: int,
    picture: Path | None,
    target_slices: dict[str, list[str]] | None = None,
    loraplus_lr_ratio: float | None = None,
) -> str:
    """Markdown: what was trained, how it went, the loss curve, the settings that matter."""
    share = result.trainable_parameters / result.total_parameters
    modules = ", ".join(f"{n} × `{name}`" for name, n in result.target_modules.items())
    resumed = (
        f" The last attempt went on from the checkpoint of step {result.resumed_from_step}."
        if result.resumed_from_step is not None
        else ""
    )
    kind = str(peft_config.get("peft_type", "LORA"))
    number = (
        result.dtype if quantization == "none" else f"{quantization}, computed in {result.dtype}"
    )
    lines = [
        "# Training",
        "",
        f"{result.steps} optimizer steps over {_rows(result)} ({result.epochs:.2f} epochs) took "
        f"{duration(result.seconds)}. The loss went from {result.first_loss:.3f} to "
        f"{result.final_loss:.3f}{_UNITS[method]}.{resumed}",
        "",
        *_picture(picture),
        "| What | Value |",
        "| --- | --- |",
        f"| Adapter | {kind} on {modules or 'no named module'} |",
        f"| Trained parameters | {result.trainable_parameters:,} of {result.total_parameters:,} "
        f"({share:.2%}) |",
        f"| Base weights | {number} ({result.dtype_reason}) |",
        f"| Device | {result.device} |",
        f"| Speed | {result.tokens_per_second:,.0f} tokens/s, padding not counted |",
        f"| Peak memory | {result.peak_memory_bytes / 1e9:.2f} GB |",
        f"| Generation stops at | token ids {', '.join(map(str, result.stop_token_ids))} |",
        *_start(result),
        f"| Adapter file | sha256 `{result.adapter_sha256[:16]}` |",
        f"| Reload check | logits differ by at most {result.reload_difference:.2g} |",
        "",
        "## Settings",
        "",
        "| Setting | Value |",
        "| --- | --- |",
        f"| `seed` | {seed} |",
        *(f"| `target_slices.{m}` | {', '.join(b)} |" for m, b in (target_slices or {}).items()),
        *([f"| `loraplus_lr_ratio` | {loraplus_lr_ratio:g} |"] if loraplus_lr_ratio else []),
        *(f"| `peft_config.{n}` | {peft_config[n]} |" for n in _SHOWN_PEFT if n in peft_config),
        *(
            f"| `training_config.{n}` | {training_config[n]} |"
            for n in _SHOWN
            if n in training_config
        ),
        "",
        f"Versions: {', '.join(f'{n} {v}' for n, v in result.versions.items())}.",
        "",
    ]
    return "\n".join(lines)


def _start(result: TrainingResult) -> list[str]:
    start = result.start
    if start is None:
        return []
    lines = [
        f"| Started from | {start.uri} (sha256 `{start.adapter_sha256[:16]}`): logits differ by "
        f"{start.logits_difference:.2g} from the recorded ones, {start.adapter_effect:.2g} without it |"
    ]
    if start.recorded_loss is not None:
        lines.append(
            f"| First loss | {result.first_loss:.3f}; {start.uri} was evaluated at "
            f"{start.recorded_loss:.3f} |"
        )
    if start.replayed_rows:
        lines.append(
            f"| Replayed rows | {start.replayed_rows:,} of {result.rows:,} are from its dataset |"
        )
    return lines


def _rows(result: TrainingResult) -> str:
    if result.packs is None or result.fill is None:
        return f"{result.rows} rows"
    return f"{result.rows} rows in {result.packs} packs, {result.fill:.1%} full"


def _picture(path: Path | None) -> list[str]:
    if path is None or path.stat().st_size > LARGEST_PICTURE_BYTES:
        return []
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return [f"![Loss curve](data:image/png;base64,{data})", ""]
