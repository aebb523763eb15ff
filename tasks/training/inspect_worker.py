"""The process that answers for `loraline check` what a training would be: parameters, memory, time."""

import logging
import time
from typing import Any

import torch
import transformers
from peft import PeftConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from tasks.errors import StageFailed, UserError
from tasks.methods import PREFERENCE_METHODS
from tasks.quantization import quantization_config
from tasks.training import loading
from tasks.training.arguments import build_peft_config, steps_of
from tasks.training.engine import (
    REFUSALS,
    build_trainer,
    read_rows,
    refused,
    resolve_targets,
    training_as_configured,
)
from tasks.training.guard_settings import Guards
from tasks.training.job import MEASURED_STEPS, Inspection, InspectionJob, TrainingJob
from tasks.training.lora_starts import DRAWN
from tasks.training.peft_needs import refuse_what_this_machine_lacks
from tasks.training.slicing import untrained_parameters
from tasks.training.targets import coverage
from tasks.worker import main, write_result

_log = logging.getLogger(__name__)
LARGEST_MEASURED_ON_CPU = 200_000_000
"""Parameters. Two steps of a larger model on a CPU would try a person's patience."""
_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0}
_QUANTIZED_BYTES = {"nf4": 0.55, "int8": 1.05}
"""Per weight of a linear layer, scales included."""


def inspect(job: InspectionJob) -> None:
    """Build the adapted model without weights, count, and measure two steps where that is quick."""
    transformers.utils.logging.disable_progress_bar()
    loading.use_all_cores()
    precision = loading.choose_precision(job.dtype)
    if job.quantization != "none":
        # Says at once that bitsandbytes is missing.
        quantization_config(job.quantization, precision.base, field="training.quantization")
    model = adapted_without_weights(job)
    held, total = model.get_nb_trainable_parameters()
    trainable = held - untrained_parameters(model, job.target_slices, job.base_name)
    small = total < LARGEST_MEASURED_ON_CPU or torch.cuda.is_available()
    steps = steps_of(job.training_config, job.rows)
    memory = memory_estimate(model.config, job, precision, held, total)
    write_result(
        job.result,
        Inspection(
            trainable_parameters=trainable,
            total_parameters=total,
            target_modules=coverage(getattr(model, "targeted_module_names", [])),
            dtype=precision.name,
            dtype_reason=precision.reason,
            device=loading.device_name(),
            steps=steps,
            memory_bytes=memory,
            memory_available_bytes=loading.free_memory_bytes(),
            seconds=seconds_per_step(job, precision) * steps if small else None,
            seconds_reason=f"{MEASURED_STEPS} steps were measured on rows of this dataset"
            if small
            else f"not measured: {total / 1e9:.1f} billion parameters, and there is no GPU",
        ),
    )


def adapted_without_weights(job: InspectionJob) -> Any:
    """The model with its adapter on torch's meta device: shapes and names, no memory.

    The few methods whose adapter is shaped by the weights' values get them loaded.

    Raises: UserError for target modules that the model does not have.
    """
    model = _shapes_alone(job)
    if model is not None:
        return model
    peft_config = _peft_config(job)
    model = loading.load_base(job.base, loading.choose_precision(job.dtype), "none")
    try:
        return get_peft_model(model, peft_config)
    except (*REFUSALS, RuntimeError) as error:
        raise refused(error) from error


def refuse_other_count(trainable: int, job: TrainingJob, rows: int) -> None:
    """Raises: StageFailed when a training is about to train another number of parameters than `check` says.

    Nothing is compared where only the weights or the rows tell it. No random state is used up.
    """
    if job.peft_config.get("init_lora_weights") == "eva":
        # It moves ranks from layer to layer.
        return
    same = set(TrainingJob.model_fields) & set(InspectionJob.model_fields)
    asked = InspectionJob(**job.model_dump(include=same), rows=rows, longest=1, longest_answer=1)
    with torch.random.fork_rng():
        try:
            model = _shapes_alone(asked)
        except UserError as error:
            _log.info("The parameters were not counted beforehand: %s", error)
            return
    if model is None:
        return
    predicted = model.get_nb_trainable_parameters()[0]
    predicted -= untrained_parameters(model, job.target_slices, job.base_name)
    if predicted != trainable:
        raise StageFailed(
            f"`loraline check` predicts {predicted:,} trainable parameters for this recipe, and the model "
            f"that is about to be trained has {trainable:,}. The base's weights are not those that its "
            "config.json describes, or a library puts the adapter elsewhere than it says. Nothing was "
            "trained; please report this with the recipe."
        )


def _peft_config(job: InspectionJob) -> PeftConfig:
    peft_config = build_peft_config(job.peft_config, steps_of(job.training_config, job.rows))
    refuse_what_this_machine_lacks(peft_config)
    start = getattr(peft_config, "init_lora_weights", None)
    if start != "mica" and start not in (None, False, *DRAWN):
        # PiSSA and its kind decompose the weights, of which there are none here.
        peft_config.init_lora_weights = True
    return peft_config


def _shapes_alone(job: InspectionJob) -> Any | None:
    """The adapted model on the meta device; None where its shapes follow from the weights' values."""
    config = AutoConfig.from_pretrained(job.base, local_files_only=True, trust_remote_code=False)
    peft_config = _peft_config(job)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        resolve_targets(peft_config, model, job.base_name)
        try:
            return get_peft_model(model, peft_config)
        except (NotImplementedError, RuntimeError) as error:
            _log.info("Only the weights tell how many parameters there are: %s", error)
        except REFUSALS as error:
            raise refused(error) from error
    return None


def memory_estimate(
    config: Any, job: InspectionJob, precision: loading.Precision, trainable: int, total: int
) -> dict[str, int]:
    """Bytes while training, by arithmetic: within a third of the truth for a decoder, not to be leaned on.

    Activations are those that the backward pass needs of one micro-batch of the longest rows.
    """
    text = config.get_text_config()
    size = _BYTES[precision.name]
    frozen = total - trainable
    if job.quantization == "none":
        base = frozen * size
    else:
        embeddings = text.vocab_size * text.hidden_size * (1 if text.tie_word_embeddings else 2)
        base = (frozen - embeddings) * _QUANTIZED_BYTES[job.quantization] + embeddings * size
    batch = int(job.training_config.get("per_device_train_batch_size", 8))
    if job.method in PREFERENCE_METHODS:
        # Both answers of a pair; for KTO each answer, and a foreign one behind the same prompt.
        batch *= 2
    tokens = batch * job.longest
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    layer = tokens * size * (12 * text.hidden_size + 5 * inner)
    kept = tokens * size * text.hidden_size
    settings = job.training_config
    if settings.get("activation_checkpointing") or settings.get("gradient_checkpointing"):
        activations = text.num_hidden_layers * kept + layer
    else:
        activations = text.num_hidden_layers * layer
    # Logits in float32 and their gradient; answers are at most all of a row.
    logits = min(tokens, batch * job.longest_answer) * text.vocab_size * 4 * 2
    parts = {
        "base": base,
        "adapter": trainable * 4,
        # Gradient, and AdamW's two moments.
        "optimizer": trainable * 12,
        "activations": activations + logits,
    }
    return {name: int(value) for name, value in (parts | {"total": sum(parts.values())}).items()}


def seconds_per_step(job: InspectionJob, precision: loading.Precision) -> float:
    """Wall time of an optimizer step on the sample rows, after one to warm up."""
    clock = _Clock()
    training = TrainingJob(
        **job.model_dump(include=set(TrainingJob.model_fields) & set(InspectionJob.model_fields)),
        base_commit=None,
        tokens=job.working,
        seed=0,
        # Its steps judge nothing but time.
        guards=Guards(untrained_base="allow"),
    )
    quiet = {
        "max_steps": 1 + MEASURED_STEPS,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
    }
    training = training.model_copy(update={"training_config": job.training_config | quiet})
    trainer = build_trainer(training, read_rows(job.working / "train.parquet"), precision, [clock])
    with training_as_configured(trainer):
        trainer.train()
    ends = clock.ends
    return (ends[-1] - ends[0]) / (len(ends) - 1)


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())


if __name__ == "__main__":
    main(InspectionJob, inspect)
