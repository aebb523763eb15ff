"""The recipe's section `training`: the PEFT method, the trainer's arguments, the guards."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from tasks.methods import Method
from tasks.model_files import base_width
from tasks.quantization import Quantization
from tasks.settings import Settings
from tasks.suggest import did_you_mean
from tasks.training import fields, owned
from tasks.training.attention_choice import Attention
from tasks.training.defaults import resolve_peft, resolve_training
from tasks.training.guard_settings import A_YEAR_IN_MINUTES, Budget, Guards
from tasks.training.lora_only import cached_starts, lora_only_problem
from tasks.training.methods.limits import (
    method_mistakes,
    needs_one_process,
    reference_mistakes,
)
from tasks.training.patterns import broken_patterns
from tasks.training.sharding_limits import sharding_problem
from tasks.training.spread import Sharding, Spread
from tasks.training.start_settings import FROM_BASE, INIT_FROM, Replay, start_problem


class TrainingSettings(Settings):
    """How the adapter is trained. The two dictionaries keep the names of Microsoft's Phi-3 LoRA guide."""

    method: Method = "sft"
    """What is learned from a row, and from which rows. `sft`: the answers of conversations. `pretraining`:
    every token of plain texts. `dpo`, `orpo`, `kto`: to prefer the better of two answers; `dpo` and `kto`
    hold on to the base by their `beta`, `orpo` also learns the better answers as `sft` does.
    `training_config` holds the fields of TRL's SFTConfig, DPOConfig, ORPOConfig or KTOConfig."""
    peft_config: dict[str, Any] = Field(default={})
    """Fields of the PEFT configuration class that `peft_type` names (default LORA)."""
    training_config: dict[str, Any] = Field(default={})
    """Fields of the TRL configuration class of `method`."""
    quantization: Quantization = "none"
    """`nf4` loads the base in 4 bits with double quantization (QLoRA): less memory, slower steps."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Arithmetic of the base. `auto` takes bfloat16 where the hardware has it, else float32."""
    attention: Attention = "auto"
    """What trains packed rows on a GPU without computing across examples: `flash` (needs flash-attn), `varlen`
    (torch's own) or `flex` (compiled by torch at the first step). `auto` takes `flash` where it is installed,
    else the base's own with a mask, as `sdpa` always does. On a CPU our kernels do it where they are proved
    equal."""
    processes: int = Field(default=1, ge=1, le=1024)
    """Worker processes on each machine, one for each GPU. They share the rows of every optimizer step:
    per_device_train_batch_size x gradient_accumulation_steps stays what it is, and so does the adapter
    but for rounding and dropout."""
    machines: int = Field(default=1, ge=1, le=1024)
    """Machines with `processes` each. The flow runs on one and prints what to start on the others."""
    sharding: Sharding = "none"
    """What each process holds of the model. `none`: all of it. `fsdp2`: a part of every tensor, the others
    fetched layer by layer: for bases that one GPU cannot hold; slower, on GPUs only. `zero2`, `zero3`:
    DeepSpeed's (gradients and optimizer; the base too), which must be installed. The adapter is the same
    but for rounding."""
    main_address: str | None = Field(default=None, min_length=1)
    """Where the other machines reach the one that runs the flow. Default: the variable MASTER_ADDR."""
    main_port: int | None = Field(default=None, ge=1, le=65535)
    """A free port there. Default: the variable MASTER_PORT, or 29500."""
    loraplus_lr_ratio: float | None = Field(default=None, ge=1, le=1000)
    """LoRA+: `lora_B` learns at so many times the learning rate (16 is its paper's), which then is often
    halved. Default: both matrices at one rate."""
    target_slices: dict[str, list[str]] = Field(default={})
    """Blocks of fused projections that are trained, `{qkv_proj: [q, v]}`; the other rows of those modules
    stay exactly the base's. Modules that are not named here are trained whole."""
    init_from: str = Field(
        default="base", json_schema_extra={"pattern": f"^({INIT_FROM.pattern})$"}
    )
    """What the adapter starts from. `base`: fresh. `champion`: the version that is champion when these
    rows are first trained (the base while there is none); a new champion alone is no reason to train.
    `models:/NAME/3` or `models:/NAME@ALIAS`: that version; another adapter there trains again."""
    replay: Replay = Replay()
    """Old rows among today's; only where `init_from` is not `base`."""
    guards: Guards = Guards()
    """Checks before and during training, and which of them to relax."""
    budget: Budget = Budget()
    """What a training may cost: stopped early when it is seen to cost more."""
    smaller_batches: bool = False
    """Where memory runs out, train once more with half of per_device_train_batch_size and twice the
    gradient_accumulation_steps, from the newest checkpoint: the same rows make each step, in more time.
    Not for an odd batch, nor with dataloader_drop_last, nor by `kto`, whose loss depends on the batch."""
    timeout_minutes: float | None = Field(default=None, gt=0, le=A_YEAR_IN_MINUTES)
    """Stop a training that runs longer than this. Default: no limit."""
    stall_minutes: float = Field(default=30, gt=0, le=A_YEAR_IN_MINUTES)
    """Stop a training that reports nothing for this long. A step that takes longer needs a larger value."""

    def resolved_peft_config(self) -> dict[str, Any]:
        """Every field that the PEFT class is given: the recipe's over the project's defaults."""
        return resolve_peft(self.peft_config)

    def resolved_training_config(self, base: Path | None = None) -> dict[str, Any]:
        """The fields that the TRL class is given, besides those that the worker owns.

        With the base's folder, the learning rate that a recipe leaves open is LoRA's for its width.
        """
        follows = base is not None and self.peft_config.get("peft_type", "LORA") == "LORA"
        width = base_width(base) if base is not None and follows else None
        return resolve_training(self.training_config, self.method, width)

    @property
    def spread(self) -> Spread:
        """Over how many processes the training is spread, seen from the machine that runs the flow."""
        return Spread(
            self.processes, self.machines, self.main_address, self.main_port, self.sharding
        )

    @property
    def beginning(self) -> dict[str, Any]:
        """What the recipe says of the start, empty for `base`. What decides the adapter is the version
        that this comes to, and so it is no part of `content`."""
        return _given(
            init_from="" if self.init_from == FROM_BASE else self.init_from,
            replay=self.replay.share,
        )

    def content(self, base: Path | None = None) -> dict[str, Any]:
        """What decides the adapter: fit for a fingerprint. Guards against stalls do not.

        With the base's folder, what follows from the base has its value.
        """
        spread = {} if self.spread.total == 1 else {"processes": self.spread.total}
        return {
            **spread,
            **_given(
                sharding="" if self.sharding == "none" else self.sharding,
                attention="" if self.attention == "auto" else self.attention,
                loraplus_lr_ratio=self.loraplus_lr_ratio,
                target_slices={m: sorted(set(b)) for m, b in self.target_slices.items()},
            ),
            "method": self.method,
            "peft_config": self.resolved_peft_config(),
            "training_config": self.resolved_training_config(base),
            "quantization": self.quantization,
            "dtype": self.dtype,
        }

    @field_validator("peft_config")
    @classmethod
    def _check_peft_config(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        peft_type = value.get("peft_type", "LORA")
        reason = fields.unsupported_peft_types().get(str(peft_type))
        if reason:
            _refuse([("peft_type", f"{peft_type} is not supported: {reason}")])
        if peft_type not in fields.peft_types():
            hint = did_you_mean(str(peft_type), fields.peft_types())
            _refuse([("peft_type", f"PEFT has no type {fields.shown(peft_type)}. {hint}".rstrip())])
        wrong = _mistakes(value, fields.peft_fields(peft_type), owned.PEFT, f"PEFT's {peft_type}")
        wrong += cached_starts(value)
        wrong += broken_patterns(value)
        wrong += reference_mistakes(info.data.get("method", "sft"), value)
        _refuse(wrong)
        return value

    @field_validator("training_config")
    @classmethod
    def _check_training_config(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        method = info.data.get("method", "sft")
        known = fields.training_fields(method)
        wrong = _mistakes(
            value, known, owned.of(method), f"TRL's {fields.trl_class(method)} configuration"
        )
        wrong += [(name, text) for name, text in method_mistakes(method, value)]
        scheduler, arguments = value.get("lr_scheduler_type"), value.get("lr_scheduler_kwargs")
        if arguments and not scheduler:
            wrong.append(("lr_scheduler_kwargs", "needs `lr_scheduler_type` beside it"))
        if value.get("save_strategy") == "best":
            wrong.append(("save_strategy", f"`best` is not offered: {owned.SELECTION}"))
        if scheduler in _WITH_MINIMUM and not _names_minimum(arguments):
            text = f"`{scheduler}` needs `lr_scheduler_kwargs: {{min_lr_rate: 0.1}}` beside it"
            wrong.append(("lr_scheduler_type", text))
        _refuse(wrong)
        return value

    @model_validator(mode="after")
    def _check_processes(self) -> "TrainingSettings":
        if self.spread.total > 1 and needs_one_process(self.method):
            raise ValueError(
                f"`method: {self.method}` trains in one process; leave `processes` and `machines` at 1"
            )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> "TrainingSettings":
        if self.sharding != "none" and (
            problem := sharding_problem(
                self.sharding,
                processes=self.spread.total,
                quantization=self.quantization,
                peft_config=self.peft_config,
                slices=self.target_slices,
                init_from=self.init_from,
            )
        ):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_lora_only(self) -> "TrainingSettings":
        if problem := lora_only_problem(
            self.peft_config, self.target_slices, self.loraplus_lr_ratio
        ):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_start(self) -> "TrainingSettings":
        problem = start_problem(self.init_from, self.replay, self.peft_config, self.method)
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_quantization(self) -> "TrainingSettings":
        if self.quantization != "none" and self.peft_config.get("loftq_config"):
            raise ValueError(
                "`quantization` and `peft_config.loftq_config` both quantize the base; keep one"
            )
        return self


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


_WITH_MINIMUM = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")


def _names_minimum(arguments: Any) -> bool:
    return isinstance(arguments, str) or bool({"min_lr", "min_lr_rate"} & set(arguments or ()))


def _mistakes(
    given: dict[str, Any],
    known: dict[str, fields.Fragment],
    ours: dict[str, owned.Owned],
    where: str,
) -> list[tuple[str, str]]:
    """(field, what is wrong) for every field that is unknown, owned by the pipeline, or of a wrong type."""
    mistakes = []
    for name, value in given.items():
        if name in ours:
            what = "a secret" if ours[name].secret else fields.shown(value)
            mistakes.append((name, f"is not set here ({what}): {ours[name].instead}"))
        elif name not in known:
            free = [field for field in known if field not in ours]
            mistakes.append((name, f"{where} has no such field. {did_you_mean(name, free)}"))
        elif text := fields.problem(value, known[name]):
            mistakes.append((name, text))
    return mistakes


def _refuse(mistakes: list[tuple[str, str]]) -> None:
    """Raise all mistakes at once, each at its own field, so that a reader can name its line."""
    if not mistakes:
        return
    raise ValidationError.from_exception_data(
        "TrainingSettings",
        [
            InitErrorDetails(
                type=PydanticCustomError("field", "{what}", {"what": text.strip()}),
                loc=(name,),
                input=None,
            )
            for name, text in mistakes
        ],
    )
