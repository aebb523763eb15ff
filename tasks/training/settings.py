"""The recipe's section `training`: the PEFT method, the trainer's arguments, the guards."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from tasks.quantization import Quantization
from tasks.settings import Settings
from tasks.suggest import did_you_mean
from tasks.training import fields, owned
from tasks.training.defaults import resolve_peft, resolve_training


class TrainingSettings(Settings):
    """How the adapter is trained. The two dictionaries keep the names of Microsoft's Phi-3 LoRA guide."""

    method: Literal["sft"] = "sft"
    """`sft`: supervised fine-tuning with TRL's SFTTrainer; `training_config` holds fields of its SFTConfig."""
    peft_config: dict[str, Any] = Field(default={})
    """Fields of the PEFT configuration class that `peft_type` names (default LORA)."""
    training_config: dict[str, Any] = Field(default={})
    """Fields of the TRL configuration class of `method`."""
    quantization: Quantization = "none"
    """`nf4` loads the base in 4 bits with double quantization (QLoRA): less memory, slower steps."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Arithmetic of the base. `auto` takes bfloat16 where the hardware has it, else float32."""
    timeout_minutes: float | None = Field(default=None, gt=0)
    """Stop a training that runs longer than this. Default: no limit."""
    stall_minutes: float = Field(default=30, gt=0)
    """Stop a training that reports nothing for this long."""

    def resolved_peft_config(self) -> dict[str, Any]:
        """Every field that the PEFT class is given: the recipe's over the project's defaults."""
        return resolve_peft(self.peft_config)

    def resolved_training_config(self) -> dict[str, Any]:
        """The fields that the TRL class is given, besides those that the worker owns."""
        return resolve_training(self.training_config)

    def content(self) -> dict[str, Any]:
        """What decides the adapter: fit for a fingerprint. Guards against stalls do not."""
        return {
            "method": self.method,
            "peft_config": self.resolved_peft_config(),
            "training_config": self.resolved_training_config(),
            "quantization": self.quantization,
            "dtype": self.dtype,
        }

    @field_validator("peft_config")
    @classmethod
    def _check_peft_config(cls, value: dict[str, Any]) -> dict[str, Any]:
        peft_type = value.get("peft_type", "LORA")
        reason = fields.unsupported_peft_types().get(str(peft_type))
        if reason:
            _refuse([("peft_type", f"{peft_type} is not supported: {reason}")])
        if peft_type not in fields.peft_types():
            hint = did_you_mean(str(peft_type), fields.peft_types())
            _refuse([("peft_type", f"PEFT has no type {fields.shown(peft_type)}. {hint}".rstrip())])
        wrong = _mistakes(value, fields.peft_fields(peft_type), owned.PEFT, f"PEFT's {peft_type}")
        start = value.get("init_lora_weights")
        if start in owned.UNTRAINABLE_INITIALISATIONS:
            text = f"`{start}` needs a pass over the data before training, which no stage makes"
            wrong = [w for w in wrong if w[0] != "init_lora_weights"]
            wrong.append(("init_lora_weights", f"{text}. Take true, `olora` or `pissa`"))
        _refuse(wrong)
        return value

    @field_validator("training_config")
    @classmethod
    def _check_training_config(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        method = info.data.get("method", "sft")
        known = fields.training_fields(method)
        wrong = _mistakes(value, known, owned.TRAINING, f"TRL's {method.upper()} configuration")
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
    def _check_quantization(self) -> "TrainingSettings":
        if self.quantization != "none" and self.peft_config.get("loftq_config"):
            raise ValueError(
                "`quantization` and `peft_config.loftq_config` both quantize the base; keep one"
            )
        return self


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
