"""Dictionaries of the Phi-3 LoRA documents, pasted into a recipe as they stand."""

import pytest

from tasks.errors import RecipeError
from tasks.recipe import read_recipe

SAMPLE = """\
training:
  training_config:
    bf16: true
    do_eval: false
    learning_rate: 5.0e-06
    log_level: info
    logging_steps: 20
    logging_strategy: steps
    lr_scheduler_type: cosine
    num_train_epochs: 1
    max_steps: -1
    output_dir: ./checkpoint_dir
    overwrite_output_dir: true
    per_device_eval_batch_size: 4
    per_device_train_batch_size: 4
    remove_unused_columns: true
    save_steps: 100
    save_total_limit: 1
    seed: 0
    gradient_checkpointing: true
    gradient_checkpointing_kwargs: {use_reentrant: false}
    gradient_accumulation_steps: 1
    warmup_ratio: 0.2
  peft_config:
    r: 16
    lora_alpha: 32
    lora_dropout: 0.05
    bias: none
    task_type: CAUSAL_LM
    target_modules: all-linear
    modules_to_save: null
"""
"""The two dictionaries of sample_finetune.py, beside the weights of Phi-3-mini-4k-instruct."""

NOTEBOOK = """\
training:
  training_config:
    output_dir: ./phi-3-mini-LoRA
    evaluation_strategy: steps
    do_eval: true
    optim: adamw_torch
    per_device_train_batch_size: 8
    gradient_accumulation_steps: 4
    per_device_eval_batch_size: 8
    log_level: debug
    save_strategy: epoch
    logging_steps: 100
    learning_rate: 1e-4
    fp16: false
    bf16: true
    eval_steps: 100
    num_train_epochs: 3
    warmup_ratio: 0.1
    lr_scheduler_type: linear
    report_to: wandb
    seed: 42
    max_seq_length: 512
    dataset_text_field: text
  peft_config:
    r: 16
    lora_alpha: 16
    lora_dropout: 0.05
    task_type: TaskType.CAUSAL_LM
    target_modules: [k_proj, q_proj, v_proj, o_proj, gate_proj, down_proj, up_proj]
"""
"""Of Phi-3-finetune-lora-python.ipynb, with the trainer's arguments beside the configuration's."""


def read(path):
    loaded = read_recipe(path)
    warnings = [line.replace(f"{path}:", "") for line in loaded.warnings]
    return loaded.recipe, warnings


def mistake(path):
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    return str(error.value).replace(f"{path}:", "")


def test_the_samples_dictionaries_work_as_pasted(write_recipe):
    recipe, warnings = read(write_recipe(SAMPLE))
    assert recipe.training.training_config == {
        "learning_rate": 5e-6,
        "log_level": "info",
        "logging_steps": 20,
        "logging_strategy": "steps",
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 1,
        "max_steps": -1,
        "per_device_eval_batch_size": 4,
        "per_device_train_batch_size": 4,
        "save_steps": 100,
        "save_total_limit": 1,
        "gradient_accumulation_steps": 1,
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "warmup_steps": 0.2,
    }
    assert recipe.training.dtype == "bfloat16"
    assert recipe.training.peft_config["target_modules"] == "all-linear"
    assert recipe.seed == 42
    assert [int(warning.split(":")[0]) for warning in warnings] == [
        8,
        9,
        17,
        18,
        21,
        24,
        25,
        26,
        28,
    ]


def test_each_warning_shows_the_line_to_write(write_recipe):
    _, warnings = read(write_recipe(SAMPLE))
    field = "training.training_config"
    assert f"28: {field}.warmup_ratio: below 1 it is a share of steps. " in warnings[-1]
    assert warnings[-1].endswith("Write `warmup_steps: 0.2` instead.")
    assert warnings[0].endswith("Write `dtype: bfloat16` under `training` instead.")
    assert warnings[2].startswith(f"17: {field}.output_dir: dropped: every run's folders lie under")
    assert warnings[6].endswith("Write `activation_checkpointing: true` instead.")


def test_the_notebooks_dictionaries_work_as_pasted(write_recipe):
    recipe, warnings = read(write_recipe(NOTEBOOK))
    assert recipe.tokenization.max_length == 512
    assert recipe.training.dtype == "bfloat16"
    config = recipe.training.training_config
    assert (config["eval_strategy"], config["eval_steps"]) == ("steps", 100)
    assert config["warmup_steps"] == 0.1
    assert not {"report_to", "seed", "output_dir", "do_eval", "fp16"} & set(config)
    assert recipe.training.peft_config["task_type"] == "CAUSAL_LM"
    assert any("Write `max_length: 512` under `tokenization` instead." in w for w in warnings)


def test_what_was_translated_is_accepted_by_the_installed_classes(write_recipe, tmp_path):
    from peft import LoraConfig
    from trl import SFTConfig

    for text in (SAMPLE, NOTEBOOK, ""):
        training = read(write_recipe(text))[0].training
        values = training.resolved_training_config()
        config = SFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **values)
        for name, value in values.items():
            assert getattr(config, name) == value, name
        adapter = LoraConfig(**training.resolved_peft_config())
        assert adapter.r == training.resolved_peft_config()["r"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("group_by_length: true", {"train_sampling_strategy": "group_by_length"}),
        ("group_by_length: false", {}),
        ("adafactor: true", {"optim": "adafactor"}),
        ("per_gpu_train_batch_size: 3", {"per_device_train_batch_size": 3}),
        ("per_gpu_eval_batch_size: 3", {"per_device_eval_batch_size": 3}),
        ("use_liger: true", {"use_liger_kernel": True}),
        ("loss_type: chunked_nll", {"loss_type": "nll"}),
        ("no_cuda: false", {}),
        ("use_mps_device: true", {}),
        ("use_ipex: false", {}),
        ("save_safetensors: true", {}),
        ("logging_dir: ./logs", {}),
        ("tokenizer: tokenizer", {}),
        ("dataset_batch_size: 1000", {}),
        ("torch_dtype: torch.bfloat16", {}),
        ("packing: false", {}),
        ("assistant_only_loss: true", {}),
        ("report_to: [none]", {}),
        ("push_to_hub: false", {}),
        ("hub_token: null", {}),
        ("trust_remote_code: false", {}),
        ("disable_tqdm: true", {}),
        ("warmup_ratio: 0", {"warmup_steps": 0}),
    ],
)
def test_old_and_harmless_lines_are_read_with_one_warning(write_recipe, line, expected):
    recipe, warnings = read(write_recipe(f"training:\n  training_config:\n    {line}\n"))
    assert recipe.training.training_config == expected
    assert len(warnings) == 1
    assert warnings[0].startswith(f"8: training.training_config.{line.split(':')[0]}: ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max_length: 300", "is not set here (300): write `tokenization.max_length`"),
        ("save_strategy: best", "`best` is not offered"),
        ("output_dir: ./elsewhere", "is not set here ('./elsewhere'): every run's folders"),
        ("seed: 7", "write `seed:` at the top"),
        ("packing: true", "each conversation is trained as a row of its own"),
        ("completion_only_loss: false", "loss falls on assistant turns"),
        ("report_to: tensorboard", "the run is tracked in MLflow"),
        ("push_to_hub: true", "the adapter is published by the registry"),
        ("hub_model_id: me/x", "the adapter is published by the registry"),
        ("do_train: false", "the training stage always trains"),
        ("trust_remote_code: true", "code that comes with a model is never run"),
        ("load_best_model_at_end: true", "the only held-out rows are the test rows"),
        ("save_only_model: true", "cannot continue a training"),
        ("deepspeed: ds.json", "is decided where the worker is started"),
        ("use_cpu: true", "CUDA_VISIBLE_DEVICES= hides it"),
        ("no_cuda: true", "no library reads this any more (given: true)"),
        ("save_safetensors: false", "adapters are saved as safetensors, always"),
        ("fsdp_min_num_params: 5", "write `fsdp_config`"),
        ("split_batches: true", "write `accelerator_config: {split_batches: ...}`"),
        ("tokenizer: other/model", "the base model's own tokenizer is used. Delete the line"),
        ("warmup_ratio: 1.5", "is a share of all steps, from 0 to below 1"),
        ("warmup_ratio: true", "must be a number"),
        ("group_by_length: 3", "must be true or false"),
        ("bf16: 'yes'", "must be true or false"),
        ("torch_dtype: int8", "must be one of auto, bf16"),
        ("max_seq_length: long", "tokenization.max_length: must be an integer, not 'long'"),
    ],
)
def test_a_line_that_asked_for_something_else_is_a_mistake(write_recipe, line, words):
    text = mistake(write_recipe(f"training:\n  training_config:\n    {line}\n"))
    assert text.startswith("8: ")
    assert words in text


def test_a_secret_under_an_old_name_is_not_repeated(write_recipe):
    path = write_recipe("training:\n  training_config:\n    push_to_hub_token: hf_secret\n")
    assert "hf_secret" not in mistake(path)


def test_a_second_length_that_differs_is_a_mistake_that_names_both_lines(write_recipe):
    path = write_recipe(
        "tokenization:\n  max_length: 1024\n"
        "training:\n  training_config:\n    max_seq_length: 2048\n"
    )
    assert mistake(path) == (
        "10: training.training_config.max_seq_length: says `max_length: 2048` under `tokenization`, "
        "but 7 says `max_length: 1024`. Keep one."
    )


def test_a_second_length_that_agrees_is_a_warning(write_recipe):
    recipe, warnings = read(
        write_recipe(
            "tokenization:\n  max_length: 2048\n"
            "training:\n  training_config:\n    max_seq_length: 2048\n"
        )
    )
    assert recipe.tokenization.max_length == 2048
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("lines", "dtype"),
    [
        (["bf16: true", "fp16: false"], "bfloat16"),
        (["bf16: false", "fp16: true"], "float16"),
        (["bf16: false", "fp16: false"], "float32"),
        (["fp16: false"], "float32"),
    ],
)
def test_precision_switches_become_one_dtype(write_recipe, lines, dtype):
    body = "".join(f"    {line}\n" for line in lines)
    recipe, warnings = read(write_recipe(f"training:\n  training_config:\n{body}"))
    assert recipe.training.dtype == dtype
    assert len(warnings) == len(lines)


def test_contradicting_precisions_are_mistakes(write_recipe):
    both = write_recipe("training:\n  training_config:\n    bf16: true\n    fp16: true\n")
    assert "9: training.training_config.fp16: `bf16` (8) and `fp16` exclude" in mistake(both)
    other = write_recipe("training:\n  dtype: float32\n  training_config:\n    bf16: true\n")
    assert "9: training.training_config.bf16: says `dtype: bfloat16` under `training`" in (
        mistake(other)
    )


def test_an_old_name_beside_its_new_one_is_a_mistake_when_they_differ(write_recipe):
    path = write_recipe(
        "training:\n  training_config:\n    eval_strategy: epoch\n    evaluation_strategy: steps\n"
    )
    assert (
        "9: training.training_config.evaluation_strategy: says `eval_strategy: steps`, but 8"
        in (mistake(path))
    )


def test_warmup_steps_override_a_ratio_as_they_always_did(write_recipe):
    recipe, warnings = read(
        write_recipe("training:\n  training_config: {warmup_ratio: 0.2, warmup_steps: 50}\n")
    )
    assert recipe.training.training_config == {"warmup_steps": 50}
    assert "`warmup_steps: 50` overrides it" in warnings[0]


def test_a_seed_that_equals_the_recipes_is_dropped(write_recipe):
    recipe, warnings = read(
        write_recipe("seed: 7\ntraining:\n  training_config: {seed: 7, data_seed: 7}\n")
    )
    assert (recipe.seed, recipe.training.training_config) == (7, {})
    assert len(warnings) == 2


def test_an_override_is_translated_too_and_named_as_such(write_recipe):
    loaded = read_recipe(write_recipe(), ("training.training_config.warmup_ratio=0.1",))
    assert loaded.recipe.training.training_config == {"warmup_steps": 0.1}
    assert loaded.warnings[0].startswith("--set training.training_config.warmup_ratio=0.1: ")


def test_dictionaries_that_are_no_dictionaries_are_ordinary_mistakes(write_recipe):
    text = mistake(
        write_recipe("training:\n  peft_config: 3\n  training_config: [a]\ntokenization: 4\n")
    )
    assert "7: training.peft_config: must be a mapping of fields, not 3." in text
    assert "8: training.training_config: must be a mapping of fields, not ['a']." in text
