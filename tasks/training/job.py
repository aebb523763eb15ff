"""What the training workers are told, and what they answer."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.methods import Method
from tasks.quantization import Quantization
from tasks.training.attention_choice import Attention
from tasks.training.guard_settings import Budget, Guards
from tasks.training.spread import Sharding

MEASURED_STEPS = 2
"""Optimizer steps that an inspection takes the time of."""


class StartJob(BaseModel):
    """The version whose adapter the training goes on with."""

    model_config = ConfigDict(frozen=True)

    uri: str
    """`models:/NAME/VERSION`, for words."""
    adapter: Path
    """Folder of the adapter."""
    adapter_sha256: str
    """Of its weights file, as the registry records it."""
    base_sha256: str
    fixture: Path
    """Folder of the recorded prompts and logits."""
    recorded_loss: float | None = None
    """Nats per token on the test rows of the version's own evaluation; None where losses of `method`
    cannot be compared with it."""


class TrainingJob(BaseModel):
    """Everything the training worker needs to know; paths are absolute."""

    model_config = ConfigDict(frozen=True)

    base: Path
    """Folder of the base model: config, safetensors, tokenizer."""
    base_name: str
    """Hub id or folder as the recipe names it: what the adapter's configuration will say."""
    base_commit: str | None
    """Hub commit of the base; None for a local folder."""
    tokens: Path
    """Folder with `train.parquet` and `test.parquet`, and `train_packs.parquet` where rows are packed."""
    working: Path
    """Checkpoints (`checkpoints/`), the output (`output/`) and `result.json` are written here."""
    seed: int
    method: Method = "sft"
    peft_config: dict[str, Any]
    """Every field for the PEFT class that `peft_type` names."""
    training_config: dict[str, Any]
    """Fields for the TRL configuration class of `method`, without those that the worker owns."""
    order_batch: int | None = None
    """The recipe's batch, where memory made that of `training_config` smaller: rows are read in the
    order that it gives, so that each optimizer step reads the same ones. None: they are the same."""
    quantization: Quantization = "none"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    attention: Attention = "auto"
    guards: Guards = Guards()
    budget: Budget = Budget()
    stall_seconds: float | None = None
    """After so long without an event the parent gives up; shortly before, stacks are worth a look."""
    loraplus_lr_ratio: float | None = None
    target_slices: dict[str, list[str]] = {}
    processes: int = 1
    """Of this training, on all machines; they share the rows of every optimizer step."""
    sharding: Sharding = "none"
    """What of the model each of them holds."""
    start: StartJob | None = None
    """None: a fresh adapter."""
    inputs: dict[str, Any] = {}
    """What decides the adapter, by the names that a person knows: what a checkpoint belongs to."""

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the unfinished training."""
        return self.working / "checkpoints"

    @property
    def output(self) -> Path:
        """The finished stage output, before it is published."""
        return self.working / "output"

    @property
    def result(self) -> Path:
        """Written last."""
        return self.working / "result.json"


class StartResult(BaseModel):
    """What the training started from, and the proof."""

    model_config = ConfigDict(frozen=True)

    uri: str
    adapter_sha256: str
    base_sha256: str
    logits_difference: float
    """Largest difference of logits from those recorded with the version, before the first step."""
    adapter_effect: float
    """The same without the adapter: what loading it changed."""
    recorded_loss: float | None = None
    replayed_rows: int = 0
    """Training rows that come from its dataset."""


class TrainingResult(BaseModel):
    """What a finished training came to."""

    model_config = ConfigDict(frozen=True)

    adapter_sha256: str
    """sha256 of `adapter/adapter_model.safetensors`."""
    trainable_parameters: int
    total_parameters: int
    target_modules: dict[str, int]
    """Name of an adapted module (its last part) -> number of modules."""
    dtype: str
    """Number format of the base: `bfloat16`, `float16`, `float32`."""
    dtype_reason: str
    device: str
    """`cpu` with its thread count, or the GPU's name."""
    steps: int
    """Optimizer steps in total, earlier attempts included."""
    resumed_from_step: int | None
    """The checkpoint that the last attempt started from."""
    epochs: float
    rows: int
    packs: int | None = None
    """Packed rows that the rows were read in; None where each stood alone."""
    fill: float | None = None
    """Share of the packs' positions that hold a token."""
    first_loss: float
    final_loss: float
    """Mean training loss (nats per answer token) over the last logged steps."""
    tokens: int
    """Tokens read in the last attempt, padding not counted."""
    seconds: float
    """Wall time of the last attempt's steps."""
    tokens_per_second: float
    peak_memory_bytes: int
    """Of the GPU's allocator, or the resident size of the process on a CPU."""
    stop_token_ids: list[int]
    """Token ids at which generation must end."""
    reload_difference: float
    """Largest difference between logits of the trained and of the reloaded adapter."""
    versions: dict[str, str]
    start: StartResult | None = None
    """None: the adapter began fresh."""
    asked: str | None = None
    """`tasks.start.Beginning.asked`: the inputs but the champion."""


class InspectionJob(BaseModel):
    """Asks what a training would be, without running it."""

    model_config = ConfigDict(frozen=True)

    base: Path
    base_name: str
    working: Path
    """Holds `train.parquet`, sample rows (packed ones where the training's are) for a few steps;
    `result.json` is written here."""
    rows: int
    """Training rows of the whole dataset, or its packs."""
    longest: int
    """Tokens of the longest row or pack."""
    longest_answer: int
    """Trained tokens of the row or pack that has most."""
    method: Method = "sft"
    peft_config: dict[str, Any]
    target_slices: dict[str, list[str]] = {}
    training_config: dict[str, Any]
    quantization: Quantization = "none"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    attention: Attention = "auto"

    @property
    def result(self) -> Path:
        """Written last."""
        return self.working / "result.json"


class Inspection(BaseModel):
    """What a training would be."""

    model_config = ConfigDict(frozen=True)

    trainable_parameters: int
    total_parameters: int
    target_modules: dict[str, int]
    """Name of an adapted module (its last part) -> number of modules."""
    dtype: str
    dtype_reason: str
    device: str
    steps: int
    """Optimizer steps."""
    memory_bytes: dict[str, int]
    """An estimate: `base`, `adapter`, `optimizer`, `activations`, and their sum `total`."""
    memory_available_bytes: int | None
    """Free memory of the GPU, or of the machine."""
    seconds: float | None
    """Estimated wall time of all steps; None when nothing was measured."""
    seconds_reason: str
    """How the time was estimated, or why it was not."""
