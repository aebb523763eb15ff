"""Fields of the two dictionaries that the pipeline sets itself, and where a person sets them instead."""

from dataclasses import dataclass
from typing import Any

from tasks.methods import PREFERENCE_METHODS

SAMPLE_OUTPUT_DIRS = ("./checkpoint_dir", "./phi-3-mini-LoRA", "./phi-3-mini-QLoRA")
"""Of Microsoft's sample_finetune.py and the two notebooks beside the Phi-3 LoRA guide."""
SAMPLE_SEEDS = (0, 42)
"""Of the same documents."""


@dataclass(frozen=True)
class Owned:
    """A field that a recipe may not set here."""

    instead: str
    """Where it is decided, as the rest of the sentence `X is not set here: ...`."""
    harmless: tuple[Any, ...] = ()
    """Values that ask for what happens anyway, or stand in the source documents' samples: dropped with
    a warning when a recipe is read (docs/adr/0003-pasted-dictionaries.md). All others are mistakes."""
    secret: bool = False
    """The value must not be repeated in a message."""


_FOLDERS = Owned(
    "every run's folders lie under $LORALINE_HOME, and the adapter is in the registry",
    SAMPLE_OUTPUT_DIRS,
)
_SEED = Owned(
    "write `seed:` at the top of the recipe; it is the seed of the whole run", SAMPLE_SEEDS
)
_TOKENIZATION = "the section `tokenization` decides how conversations become token ids"
_MASK = "loss falls on assistant turns and their end-of-turn token, always (section `tokenization`)"
_PACKING = (
    "each conversation is trained as a row of its own, or together with others where "
    "`tokenization.packing: true` is written"
)
_EVAL_PACKING = "test rows are never packed"
_TRACKING = (
    "the run is tracked in MLflow, under the experiment that `registration.experiment` names"
)
_REGISTRY = "the adapter is published by the registry (section `registration`)"
_LAUNCH = "how training is spread over devices is decided where the worker is started"
SELECTION = (
    "the only held-out rows are the test rows; a checkpoint chosen by them would score too well. "
    "Section `evaluation` judges the last one"
)
_DTYPE = "write `training.dtype`"

TRAINING: dict[str, Owned] = {
    "output_dir": _FOLDERS,
    "seed": _SEED,
    "data_seed": Owned(_SEED.instead, (None, *SAMPLE_SEEDS)),
    "max_length": Owned("write `tokenization.max_length`"),
    "truncation_mode": Owned(
        "answers are never cut; `tokenization.long_rows` says what happens to long rows",
        ("keep_start",),
    ),
    "packing": Owned(_PACKING, (False,)),
    "packing_strategy": Owned(
        "`tokenization.packing` packs by best fit and never cuts a row", ("bfd",)
    ),
    "padding_free": Owned(_PACKING, (False,)),
    "eval_packing": Owned(_EVAL_PACKING, (None, False)),
    "completion_only_loss": Owned(_MASK, (None, True)),
    "assistant_only_loss": Owned(_MASK, (True,)),
    "dataset_text_field": Owned(_TOKENIZATION, ("text",)),
    "dataset_kwargs": Owned(_TOKENIZATION, (None, {})),
    "dataset_num_proc": Owned(_TOKENIZATION, (None,)),
    "shuffle_dataset": Owned("rows are shuffled in every epoch, by `seed`", (False,)),
    "chat_template_path": Owned("the base model's own chat template is rendered", (None,)),
    "eos_token": Owned("the chat template's end-of-turn token ends an answer", (None,)),
    "pad_token": Owned("padding carries no loss, whatever the token", (None,)),
    "remove_unused_columns": Owned("rows hold token ids and labels only", (True,)),
    "label_names": Owned("rows hold token ids and labels only", (None, ["labels"])),
    "length_column_name": Owned("rows hold token ids and labels only", ("length",)),
    "report_to": Owned(_TRACKING, (None, "none", "mlflow", "wandb", [], ["none"], ["mlflow"])),
    "run_name": Owned(_TRACKING, (None, "phi-3-mini-ft-py-3e")),
    "project": Owned(_TRACKING),
    "trackio_space_id": Owned(_TRACKING, (None,)),
    "trackio_bucket_id": Owned(_TRACKING, (None,)),
    "trackio_static_space_id": Owned(_TRACKING, (None,)),
    "disable_tqdm": Owned("`loraline run` shows its own progress display", (None, True, False)),
    "push_to_hub": Owned(_REGISTRY, (False,)),
    "hub_token": Owned(
        "a recipe holds no secret. Log in with `hf auth login`, or set HF_TOKEN",
        (None,),
        secret=True,
    ),
    "hub_private_repo": Owned(_REGISTRY, (None,)),
    "hub_model_id": Owned(_REGISTRY, (None,)),
    "hub_strategy": Owned(_REGISTRY, ("every_save",)),
    "hub_always_push": Owned(_REGISTRY, (False,)),
    "hub_revision": Owned(_REGISTRY, (None,)),
    "do_train": Owned("the training stage always trains", (True,)),
    "do_eval": Owned("the evaluation stage always evaluates", (True, False)),
    "do_predict": Owned("the evaluation stage always keeps its predictions", (True, False)),
    "resume_from_checkpoint": Owned(
        "an interrupted training goes on by itself, with `--force` too; another `seed:` starts anew",
        (None,),
    ),
    "ignore_data_skip": Owned(
        "an interrupted training goes on with the rows that it has not read", (False,)
    ),
    "auto_find_batch_size": Owned(
        "the batch decides which rows an optimizer step reads. Where memory may run out, write "
        "`training.smaller_batches: true`: half as many rows at once, the same in each step",
        (False,),
    ),
    "enable_jit_checkpoint": Owned(
        "an interrupted training keeps a checkpoint by itself", (True, False)
    ),
    "save_only_model": Owned(
        "a checkpoint without its optimizer cannot continue a training", (False,)
    ),
    "load_best_model_at_end": Owned(SELECTION, (False,)),
    "metric_for_best_model": Owned(SELECTION, (None,)),
    "greater_is_better": Owned(SELECTION, (None,)),
    "local_rank": Owned(_LAUNCH, (-1,)),
    "average_tokens_across_devices": Owned(
        "the loss is a mean over the tokens of all devices, so that their number changes nothing",
        (True,),
    ),
    "fsdp": Owned(_LAUNCH, (None, "", [])),
    "fsdp_config": Owned(_LAUNCH, (None, {})),
    "deepspeed": Owned(_LAUNCH, (None,)),
    "parallelism_config": Owned(_LAUNCH, (None,)),
    "use_cpu": Owned("the worker takes the GPU it finds; CUDA_VISIBLE_DEVICES= hides it", (False,)),
    "bf16": Owned(_DTYPE),
    "fp16": Owned(_DTYPE),
    "bf16_full_eval": Owned(_DTYPE, (False,)),
    "fp16_full_eval": Owned(_DTYPE, (False,)),
    "model_init_kwargs": Owned(
        "`base`, `training.dtype` and `training.quantization` decide how the model is loaded",
        (None, {}),
    ),
    "trust_remote_code": Owned("code that comes with a model is never run", (False,)),
}
"""Owned fields of `training_config`."""

_REFERENCE = "the reference is the base itself, the adapter switched off"

PREFERENCE: dict[str, Owned] = {
    "max_completion_length": Owned(
        "write `tokenization.max_length`; answers are never cut", (None,)
    ),
    "padding_value": Owned("padding carries no loss, whatever the token", (None,)),
    "is_encoder_decoder": Owned("the base is a causal language model", (None, False)),
    "generate_during_eval": Owned("the evaluation stage lets every model answer", (False,)),
    "precompute_ref_log_probs": Owned(_REFERENCE, (False,)),
    "precompute_ref_batch_size": Owned(_REFERENCE, (None,)),
    "sync_ref_model": Owned(_REFERENCE, (False,)),
    "ref_model_mixup_alpha": Owned(_REFERENCE, (0.6,)),
    "ref_model_sync_steps": Owned(_REFERENCE, (512,)),
}
"""Owned fields that only the configuration classes of DPO, ORPO and KTO have."""


def of(method: str) -> dict[str, Owned]:
    """Owned fields of `training_config` for a `training.method`."""
    return TRAINING | PREFERENCE if method in PREFERENCE_METHODS else TRAINING


_PROVENANCE = Owned("`base` names the model, and its commit is recorded", (None,))

PEFT: dict[str, Owned] = {
    "base_model_name_or_path": _PROVENANCE,
    "revision": _PROVENANCE,
    "auto_mapping": Owned("the adapter belongs to a causal language model", (None,)),
    "peft_version": Owned("the installed version is recorded", (None,)),
    "inference_mode": Owned("an adapter that is trained is not frozen", (False,)),
    "runtime_config": Owned("it concerns one process and is not stored with an adapter", ({},)),
    "arrow_config": Owned("it routes between adapters that exist already", (None,)),
}
"""Owned fields of `peft_config`."""


def is_harmless(owned: Owned, value: Any) -> bool:
    """Whether the value asks for what happens anyway (`False` is not `0`)."""
    return any(type(value) is type(known) and value == known for known in owned.harmless)
