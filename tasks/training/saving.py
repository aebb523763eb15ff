"""Write a trained adapter so that it can be loaded anywhere, and prove that it comes back unchanged."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tasks.errors import StageFailed
from tasks.files import expanded
from tasks.training.collators import NO_LOSS
from tasks.training.guards import finite
from tasks.training.lora_starts import AT_ZERO
from tasks.training.plain_lora import StartingPoint, forget_the_start

WEIGHTS = "adapter_model.safetensors"
RELOAD_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 1e-2}
"""Allowed difference between trained and reloaded, relative to the largest logit."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
FIXTURE_ROWS = 4
FIXTURE_POSITIONS = 4
FIXTURE_TOKENS = 512
"""Prompts longer than this are cut on the left in the fixture: it proves loading, not context."""


def save_adapter(
    model: Any,
    folder: Path,
    *,
    base: Path,
    base_name: str,
    commit: str | None,
    stops: list[int],
    start: StartingPoint | None = None,
) -> None:
    """PEFT's folder: weights in safetensors, configuration, tokenizer files, generation config.

    The tokenizer's files are the base's, byte by byte: saving them anew could change ids. The
    configuration names the base as the recipe does, never by a path of this machine. An adapter with a
    `start`, which it took out of the base, is written for the untouched base.
    """
    adapter = model.peft_config["default"]
    adapter.base_model_name_or_path = portable_name(base_name)
    adapter.revision = commit
    # "auto" would ask the Hub whether the vocabulary was changed; it was not.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    # PEFT's model card is a form to fill in; the registry's description says what is known.
    (folder / "README.md").unlink(missing_ok=True)
    if start is not None:
        start.make_plain(folder)
    forget_the_start(folder)
    configuration = folder / "adapter_config.json"
    _readable_like(configuration, folder / WEIGHTS)
    values = json.loads(configuration.read_text(encoding="utf-8"))
    for name, value in values.items():
        # Sets, written in the order of this process's string hashes.
        if name.endswith(("target_modules", "feedforward_modules")) and isinstance(value, list):
            values[name] = sorted(value)
    configuration.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    generation = _generation_config(base) | {"eos_token_id": stops}
    (folder / "generation_config.json").write_text(
        json.dumps(generation, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def portable_name(base_name: str) -> str:
    """A Hub id or relative folder as it is; of an absolute folder only its name."""
    path = expanded(base_name)
    return path.name if path.is_absolute() else base_name


def stop_token_ids(
    labels: Iterable[Sequence[int]], base: Path, tokenizer_eos: int | None
) -> list[int]:
    """Where generation must end: the trained end-of-turn token first, then what the base stops at.

    The end-of-turn token is the last label of a row, of nearly all rows where turns were cut.
    """
    ends = Counter(next((t for t in reversed(row) if t != NO_LOSS), NO_LOSS) for row in labels)
    ends.pop(NO_LOSS, None)
    stops: list[int | None] = [token for token, _ in ends.most_common(1)]
    own = _generation_config(base).get("eos_token_id")
    stops += own if isinstance(own, list) else [own]
    stops.append(tokenizer_eos)
    return list(dict.fromkeys(token for token in stops if token is not None))


def refuse_untrained(model: Any) -> None:
    """An adapter that holds no finite numbers, or that changes nothing, must not be saved.

    Raises: StageFailed.
    """
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    broken = [name for name, tensor in state.items() if not finite(tensor)]
    if broken:
        raise StageFailed(
            f"Training ended with numbers that are not finite in {len(broken)} of {len(state)} "
            f"adapter tensors (first: {broken[0]}). Lower training.training_config.learning_rate."
        )
    ups = {name: tensor for name, tensor in state.items() if "lora_B" in name}
    fresh = model.peft_config["default"]
    starts_at_zero = getattr(fresh, "init_lora_weights", None) in AT_ZERO
    if ups and starts_at_zero and not any(bool(tensor.any()) for tensor in ups.values()):
        raise StageFailed(
            "Training changed nothing: every lora_B is still zero. The learning rate may be 0 "
            "(training.training_config.learning_rate, lr_scheduler_type, warmup_steps), or no "
            "gradient reached the adapter."
        )
    # An expert that no token was sent to has rightly learned nothing.
    still = [n for n, tensor in ups.items() if "expert" not in n and not tensor.any()]
    if still and starts_at_zero:
        modules = [name.removeprefix("base_model.model.").split(".lora_B")[0] for name in still]
        raise StageFailed(
            f"{len(still)} of {len(ups)} adapted modules learned nothing: their lora_B is still zero "
            f"(first: {modules[0]}). No gradient reaches them; the base does not use them for text. "
            "Leave them out: training.peft_config.exclude_modules, or a narrower target_modules."
        )


def digests(model: Any) -> dict[str, str]:
    """sha256 of each tensor that is trained, by its name."""
    return {name: _digest(p) for name, p in model.named_parameters() if p.requires_grad}


def refuse_unchanged(model: Any, begun: Mapping[str, str], start: str | None) -> None:
    """What `digests` said before the first step must not be so still, of whatever kind the adapter is.

    Raises: StageFailed. `start` names the version that the training went on with.
    """
    same = [n for n, p in model.named_parameters() if n in begun and _digest(p) == begun[n]]
    if not begun or len(same) < len(begun):
        return
    what = (
        f"all {len(begun)} trained tensors are what they were before the first step"
        if start is None
        else f"the adapter is still that of {start}"
    )
    raise StageFailed(
        f"Training changed nothing: {what}, bit by bit. The learning rate may be 0 "
        "(training.training_config.learning_rate, lr_scheduler_type, warmup_steps), or no gradient "
        "reached the adapter."
    )


def _digest(tensor: torch.Tensor) -> str:
    numbers = tensor.detach().to("cpu").contiguous().reshape(-1)
    return hashlib.sha256(numbers.view(torch.uint8).numpy().tobytes()).hexdigest()


def fixture_rows(prompts: Iterable[Sequence[int]]) -> list[list[int]]:
    """Token ids of a few prompts on which two copies of a model can be compared."""
    rows = (list(p[-FIXTURE_TOKENS:]) for p in prompts if len(p) >= FIXTURE_POSITIONS)
    return [row for row, _ in zip(rows, range(FIXTURE_ROWS), strict=False)]


@torch.no_grad()
def fixture_logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits in float32 at the last positions, shape (rows, FIXTURE_POSITIONS, vocabulary).

    One row at a time: without padding there is nothing that two loaders could do differently.
    """
    model.eval()
    device = next(model.parameters()).device
    kept = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row], device=device), use_cache=False).logits
        kept.append(logits[0, -FIXTURE_POSITIONS:].float().cpu())
    return torch.stack(kept)


def save_fixture(
    folder: Path, rows: list[list[int]], logits: torch.Tensor, *, dtype: str, quantization: str
) -> None:
    """`fixture.json` and `fixture.safetensors`, for a check of the registered version in a new process."""
    values = {
        "input_ids": rows,
        "positions": FIXTURE_POSITIONS,
        "dtype": dtype,
        "quantization": quantization,
    }
    (folder / "fixture.json").write_text(json.dumps(values), encoding="utf-8")
    save_file({"logits": logits.contiguous()}, folder / "fixture.safetensors")
    _readable_like(folder / "fixture.json", folder / "fixture.safetensors")


def tolerance(dtype: str, quantization: str) -> float:
    """Of logits of one adapter, loaded twice on the same base; relative to the largest."""
    return RELOAD_TOLERANCE[dtype] * (1 if quantization == "none" else 5)


def check_reload(
    base: Any, folder: Path, rows: list[list[int]], expected: torch.Tensor, *, tolerance: float
) -> float:
    """Put the saved adapter on a fresh base; the largest difference of its logits from `expected`.

    PEFT only warns of keys that are missing or left over, and half an adapter still answers.

    Raises: StageFailed for such keys, or for a difference above `tolerance` times the largest logit.
    """
    model = PeftModel.from_pretrained(base, folder)
    saved = set(load_file(folder / WEIGHTS))
    needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if saved != needed:
        raise StageFailed(
            f"The saved adapter does not fit the base it was trained on: {len(needed - saved)} "
            f"tensors are missing {sorted(needed - saved)[:3]}, {len(saved - needed)} are left over "
            f"{sorted(saved - needed)[:3]}. Nothing is published; please report this with the recipe."
        )
    difference = float((fixture_logits(model, rows) - expected).abs().max())
    limit = tolerance * max(1.0, float(expected.abs().max()))
    # Written so that NaN is refused too.
    if not difference <= limit:
        raise StageFailed(
            f"The reloaded adapter answers differently from the trained one: logits differ by "
            f"{difference:.3g}, allowed is {limit:.3g}. Nothing is published. If the base is "
            "quantized, try `quantization: none`; otherwise please report this with the recipe."
        )
    return difference


def base_state(base: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the base's files: equal while nobody rewrites them."""
    files = sorted(p for p in base.iterdir() if p.suffix in (".json", ".safetensors"))
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def _readable_like(sample: Path, path: Path) -> None:
    # safetensors writes for its owner alone, whatever the umask says; a server may be another user.
    path.chmod(sample.stat().st_mode)


def _generation_config(base: Path) -> dict[str, Any]:
    path = base / "generation_config.json"
    if path.is_file():
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}
