"""Go on with a registered version's adapter: load it whole, and prove that it is the one that was registered."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback

from tasks.errors import UserError
from tasks.files import file_sha256
from tasks.training import saving
from tasks.training.job import StartJob, StartResult

FAR_ABOVE = 2.0
"""A first loss of so many times the version's own evaluation loss is worth a word."""
_NO_DIFFERENCE = {
    # Names and bookkeeping.
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type",
    # How an adapter that is not loaded would begin.
    "init_lora_weights", "corda_config", "eva_config", "loftq_config", "lora_ga_config", "init_weights",
    # Which modules: the names in the file say it whatever way they were chosen.
    "exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "target_modules",
    "target_parameters", "feedforward_modules", "ensure_weight_tying",
    # How PEFT computes, and not what.
    "runtime_config", "save_projection", "megatron_config", "megatron_core",
}  # fmt: skip
SHOWN = 5


def load_start(model: Any, start: StartJob) -> None:
    """Put the version's weights into the fresh adapter of `model`, all of them and nothing else.

    Raises: UserError when the file is another than recorded, or when the recipe's adapter differs from
    the version's in anything that shapes it, with every difference.
    """
    weights = start.adapter / saving.WEIGHTS
    if (found := file_sha256(weights)) != start.adapter_sha256:
        raise UserError(
            f"{weights} has sha256 {found[:12]}, and {start.uri} records {start.adapter_sha256[:12]}: it "
            "was changed or cut short. Restore the version's files, or name another version in "
            "training.init_from."
        )
    config = model.peft_config["default"]
    saved = load_file(weights)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    _refuse(
        start,
        [
            *config_differences(_read_config(start.adapter), json.loads(_as_json(config))),
            *_tensor_differences(saved, expected),
        ],
    )
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for _, parameter in trained:
            if parameter.dtype in (torch.float16, torch.bfloat16):
                # Of a quantized base TRL makes these coarser than the file is.
                parameter.data = parameter.data.float()
            parameter.fill_(torch.nan)
    result = set_peft_model_state_dict(model, saved)
    # By what arrived, and not by what PEFT calls it: each kind of adapter has names of its own.
    missed = [name for name, parameter in trained if bool(torch.isnan(parameter).any())]
    _refuse(
        start,
        [
            *(f"{name}: is trained, and not in the file" for name in missed),
            *(f"{name}: in the file, and nothing takes it" for name in result.unexpected_keys),
        ],
    )


@torch.no_grad()
def prove_start(model: Any, start: StartJob, *, dtype: str, quantization: str) -> StartResult:
    """Compare the model's logits with those that were recorded when the version was trained.

    Allowed is what the reloading of a trained adapter is allowed, in the coarser of then and now. Logits
    of a base that was quantized otherwise are not compared.

    Raises: UserError when they differ by more.
    """
    kept = json.loads((start.fixture / "fixture.json").read_text(encoding="utf-8"))
    expected = load_file(start.fixture / "fixture.safetensors")["logits"]
    training = model.training
    apart = _distance(model, kept["input_ids"], expected)
    with model.disable_adapter():
        effect = _distance(model, kept["input_ids"], expected)
    model.train(training)
    result = StartResult(
        uri=start.uri,
        adapter_sha256=start.adapter_sha256,
        base_sha256=start.base_sha256,
        logits_difference=apart,
        adapter_effect=effect,
        recorded_loss=start.recorded_loss,
    )
    if kept.get("quantization", "none") != quantization:
        return result
    share = max(saving.tolerance(name, quantization) for name in (dtype, kept.get("dtype", dtype)))
    limit = share * max(1.0, float(expected.abs().max()))
    # Written so that NaN is refused too.
    if not apart <= limit:
        raise UserError(
            f"training.init_from: with the adapter of {start.uri} the base answers otherwise than when the "
            f"version was trained: logits differ by {apart:.3g} on its recorded prompts, allowed is "
            f"{limit:.3g}, and without the adapter they differ by {effect:.3g}. The base or its number "
            f"format (then {kept.get('dtype')}) is another, or a library computes this adapter "
            "otherwise. `loraline verify` looks at the version alone; `training.init_from: base` "
            "starts afresh."
        )
    return result


def proof_in_words(found: StartResult) -> str:
    """What the comparison of logits says, for the log."""
    text = (
        f"Starting from {found.uri}: its logits differ by at most {found.logits_difference:.2g} from the "
        f"recorded ones, and by {found.adapter_effect:.2g} without the adapter."
    )
    if 2 * found.logits_difference >= found.adapter_effect:
        text += (
            " On these prompts it can hardly be told from the base: the version learned little, or "
            "hardware and libraries are others than they were."
        )
    return text


class FirstLoss(TrainerCallback):
    """Compares the first step's loss with what the version's evaluation measured."""

    def __init__(self, start: StartJob, note: Any) -> None:
        self._start = start
        self._note = note

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Called by the trainer; the first step is always logged."""
        recorded = self._start.recorded_loss
        if state.global_step != 1 or recorded is None or "loss" not in (logs or {}):
            return
        assert logs is not None
        text = (
            f"The first loss is {logs['loss']:.3f}; {self._start.uri} had {recorded:.3f} on the test rows "
            "of its own evaluation."
        )
        if logs["loss"] > FAR_ABOVE * recorded:
            text += (
                f" That is more than {FAR_ABOVE:g} times as much: today's rows are unlike those it was "
                "trained on, or rendered otherwise. Compare the rows (`loraline check`), or start from "
                "the base."
            )
        self._note(text)


def config_differences(kept: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """`field: V in the version, R in the recipe` of two PEFT configurations, for fields that shape the adapter.

    A scale (`lora_alpha`) counts: with another one the same weights are another function. Dropout does
    not.
    """
    lines = []
    for name in sorted({*kept, *asked} - _NO_DIFFERENCE):
        if "dropout" in name:
            continue
        before, now = kept.get(name), asked.get(name)
        # A field that a library of then or now does not have is as good as unset.
        if before != now and not (not before and not now):
            lines.append(f"{name}: {before} in the version, {now} in the recipe")
    return lines


def _tensor_differences(
    saved: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> list[str]:
    lines = [
        *_listed(
            sorted(saved.keys() - expected.keys()), "in the version, not in the recipe's adapter"
        ),
        *_listed(
            sorted(expected.keys() - saved.keys()), "in the recipe's adapter, not in the version"
        ),
    ]
    other = [
        f"{name} {tuple(saved[name].shape)} / {tuple(expected[name].shape)}"
        for name in sorted(saved.keys() & expected.keys())
        if saved[name].shape != expected[name].shape
    ]
    return lines + _listed(other, "shapes (version / recipe)")


def _listed(names: list[str], what: str) -> list[str]:
    if not names:
        return []
    shown = ", ".join(name.removeprefix("base_model.model.") for name in names[:SHOWN])
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{what}: {shown}{more}"]


def _refuse(start: StartJob, differences: list[str]) -> None:
    if differences:
        lines = "\n".join(f"  - {line}" for line in differences)
        raise UserError(
            f"training.init_from: the recipe's adapter is not that of {start.uri}, and cannot go on with "
            f"its weights:\n{lines}\nMake training.peft_config what it was, or write "
            "`training.init_from: base` to train one of the new kind from the base."
        )


def _read_config(adapter: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(
        (adapter / "adapter_config.json").read_text(encoding="utf-8")
    )
    return values


def _as_json(config: Any) -> str:
    """As PEFT writes it: enumerations by value, sets in order."""

    def plain(value: Any) -> Any:
        if isinstance(value, set | frozenset):
            return sorted(value)
        return value.value if hasattr(value, "value") else vars(value)

    return json.dumps(config.to_dict(), default=plain)


def _distance(model: Any, rows: list[list[int]], expected: torch.Tensor) -> float:
    return float((saving.fixture_logits(model, rows) - expected).abs().max())
