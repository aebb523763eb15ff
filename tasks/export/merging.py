"""Merge a version into its base in a worker process, and certify that the result is the same model."""

import json
import shutil
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.adapter_effect import allowed_difference
from tasks.errors import BaseModelError, StageFailed
from tasks.export.job import TORCH_NAMES, Certificate, Dtype, Merged, MergeJob
from tasks.export.version import TOKENIZER_MODEL, ExportedVersion
from tasks.home import Home
from tasks.memory import available_bytes

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
ROUNDING = {"fp32": 1e-4, "bf16": 2**-5, "fp16": 2**-8}
"""Difference of a logit that rounding every weight once explains, relative to the largest one (or to 1).

It grows with depth: 32 layers rounded to bf16 were seen to differ by 2^-6, 4 layers by 2^-7.
"""
MEMORY_FACTOR = 1.25
"""Of the float32 weights: one module is held twice while it is merged."""


def own_dtype(base: Path) -> Dtype:
    """The base's own, as its config.json says; bf16 where it does not."""
    config = _config(base)
    named = str(config.get("dtype") or config.get("torch_dtype") or "")
    return TORCH_NAMES.get(named.removeprefix("torch."), "bf16")


def merge_version(
    version: ExportedVersion, dtype: Dtype, draft: Path, *, working: Path, home: Home
) -> Certificate:
    """Write the merged model with its tokenizer to `draft`; the certificate lists no files yet.

    Raises: BaseModelError for a base of quantized weights; StageFailed when the merged model is another
    one than adapter-on-base, or when there is not enough memory or disk for it.
    """
    assert version.base is not None, "the base was not asked for"
    if _config(version.base).get("quantization_config"):
        raise BaseModelError(
            f"The base {version.base} holds quantized weights, and merging into them would round the adapter "
            "away. Export it as peft, to be put on that base as it is, or train on the unquantized base."
        )
    _check_room(version.base, dtype, draft)
    draft.mkdir(parents=True)
    job = MergeJob(
        adapter=version.adapter,
        manifest=version.folder / "manifest.json",
        base=version.base,
        loading=dict(version.loading),
        fixture=version.folder / "fixture",
        dtype=dtype,
        draft=draft,
        result=working / "merged.json",
    )
    log = home.logs / f"export-{version.name.replace('/', '-')}-{version.number}.log"
    launch.run(
        launch.module("tasks.export.worker", str(launch.write_job(working, job))),
        log=log,
        name=f"Merging {version.uri}",
        environment={**home.environment(), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        repeatable=False,
    )
    found = Merged.model_validate_json(job.result.read_text(encoding="utf-8"))
    if found.problem:
        raise StageFailed(
            f"{version.uri} was not merged: {found.problem} Nothing was written. Log: {log}"
        )
    tolerance = allowed(found, dtype)
    if found.largest_difference > tolerance:
        raise StageFailed(_refusal(version, found, dtype, tolerance, log))
    for path in version.tokenizer_files:
        shutil.copyfile(path, draft / path.name)
    pieces = version.base / TOKENIZER_MODEL
    if pieces.is_file() and not (draft / TOKENIZER_MODEL).exists():
        shutil.copyfile(pieces, draft / TOKENIZER_MODEL)
    return Certificate(
        version=version.uri,
        adapter_sha256=version.adapter_sha256,
        base_model=version.base_model,
        base_sha256=version.base_sha256,
        dtype=dtype,
        trained_on=version.trained_on,
        rows=found.rows,
        positions=found.positions,
        largest_difference=found.largest_difference,
        tolerance=tolerance,
        largest_logit=found.largest_logit,
        adapter_effect=found.adapter_effect,
        difference_from_training=found.difference_from_training,
        libraries={name: installed(name) for name in ("torch", "transformers", "peft")},
        files={},
    )


def allowed(found: Merged, dtype: Dtype) -> float:
    """The largest difference with which a merged model is still that adapter."""
    rounding = ROUNDING[dtype] * max(found.largest_logit, 1.0)
    return allowed_difference(rounding, found.adapter_effect)


def _refusal(
    version: ExportedVersion, found: Merged, dtype: Dtype, tolerance: float, log: Path
) -> str:
    way_out = (
        "Choose --dtype fp32, or export it as peft and put it on the base when it is loaded."
        if dtype != "fp32"
        else "Export it as peft and put it on the base when it is loaded. An adapter on layers that "
        "share their weights (a tied output head) cannot be merged."
    )
    return (
        f"{version.uri} merged in {dtype} is another model than the adapter on its base: on "
        f"{found.rows} prompts a logit differs by {found.largest_difference:.3g}, and at most "
        f"{tolerance:.3g} is allowed (the adapter itself changes them by {found.adapter_effect:.3g}). "
        f"Nothing was written. {way_out} Log: {log}"
    )


def _check_room(base: Path, dtype: Dtype, draft: Path) -> None:
    """Before an hour is spent: the model in float32 in memory, and the merged one on disk."""
    stored = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    numbers = stored / BYTES[own_dtype(base)]
    needed, there = numbers * 4 * MEMORY_FACTOR, available_bytes()
    if there is not None and needed > there:
        raise StageFailed(
            f"Merging holds the model in float32, which takes about {needed / 1e9:.1f} GB of memory, and "
            f"{there / 1e9:.1f} GB are available. Merge on a machine with more, or export as peft."
        )
    place = next(folder for folder in draft.parents if folder.is_dir())
    size, free = numbers * BYTES[dtype], shutil.disk_usage(place).free
    if size > free:
        raise StageFailed(
            f"The merged model takes about {size / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB left. "
            "Name a folder on another disk with --output."
        )


def _config(base: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return values
