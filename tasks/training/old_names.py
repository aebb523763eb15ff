"""Names that older libraries and the Phi-3 samples use in `training_config`, and what became of them.

Compared field by field: TrainingArguments of transformers 4.41 and 4.57, SFTConfig of TRL 0.12 and
0.24, against the installed classes. A test holds the lists against the generated table.
"""

from typing import Any

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "use_liger": "use_liger_kernel",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Fields of `training_config` that bear another name today, with the same values."""

_NO_EFFECT = "it has no effect any more"
_FOLDER = "every run has its own folder under $LORALINE_HOME"
_ROWS = "the section `tokenization` makes the rows"

REMOVED: dict[str, tuple[str, tuple[Any, ...] | None]] = {
    "overwrite_output_dir": (_FOLDER, None),
    "logging_dir": (_FOLDER, None),
    "save_safetensors": ("adapters are saved as safetensors, always", (True, None)),
    "no_cuda": ("the worker takes the GPU it finds; CUDA_VISIBLE_DEVICES= hides it", (False, None)),
    "use_mps_device": ("the worker takes the accelerator it finds", None),
    "use_ipex": (_NO_EFFECT, (False, None)),
    "jit_mode_eval": (_NO_EFFECT, (False, None)),
    "fp16_opt_level": (_NO_EFFECT, None),
    "fp16_backend": (_NO_EFFECT, None),
    "half_precision_backend": (_NO_EFFECT, None),
    "tpu_num_cores": (_NO_EFFECT, (None,)),
    "tpu_metrics_debug": (_NO_EFFECT, (False, None)),
    "past_index": (_NO_EFFECT, (-1, None)),
    "use_legacy_prediction_loop": (_NO_EFFECT, (False, None)),
    "mp_parameters": (_NO_EFFECT, ("", None)),
    "ray_scope": (_NO_EFFECT, None),
    "torchdynamo": ("write `torch_compile_backend`", (None,)),
    "include_inputs_for_metrics": ("write `include_for_metrics: [inputs]`", (False, None)),
    "include_tokens_per_second": ("tokens per second are always reported", None),
    "fsdp_min_num_params": ("write `fsdp_config`", (0, None)),
    "fsdp_transformer_layer_cls_to_wrap": ("write `fsdp_config`", (None,)),
    "dispatch_batches": ("write `accelerator_config: {dispatch_batches: ...}`", (None,)),
    "split_batches": ("write `accelerator_config: {split_batches: ...}`", (False, None)),
    "push_to_hub_model_id": ("the adapter is published by the registry", (None,)),
    "push_to_hub_organization": ("the adapter is published by the registry", (None,)),
    "push_to_hub_token": ("a recipe holds no secret; log in with `hf auth login`", (None,)),
    "dataset_batch_size": (_ROWS, None),
    "num_of_sequences": (_ROWS, None),
    "chars_per_token": (_ROWS, None),
    "infinite": (_ROWS, (False, None)),
}
"""Fields of `training_config` that no class has any more: why, and the values that may be dropped
(None: any). Another value asked for something that would silently not happen, so it is a mistake."""

SECRETS = {"push_to_hub_token"}

MOVED = {
    "max_seq_length": "`tokenization.max_length`",
    "max_length": "`tokenization.max_length`",
    "bf16": "`training.dtype: bfloat16`",
    "fp16": "`training.dtype: float16`",
    "dtype": "`training.dtype`",
    "torch_dtype": "`training.dtype`",
    "warmup_ratio": "`warmup_steps` (below 1 it is a share of all steps)",
    "group_by_length": "`train_sampling_strategy: group_by_length`",
    "adafactor": "`optim: adafactor`",
    "tokenizer": "nothing (the base model's own tokenizer is used)",
    "processing_class": "nothing (the base model's own tokenizer is used)",
    "seed": "`seed` at the top of the recipe",
    "data_seed": "`seed` at the top of the recipe",
}
"""Fields of `training_config` that another field answers for, and which; for editors."""

DTYPES = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "fp16": "float16"} | {
    "half": "float16",
    "float32": "float32",
    "fp32": "float32",
    "auto": "auto",
}
