"""Load a version in this fresh process and compare it with the adapter that was trained."""

import json
import time
from typing import Any

from tasks.errors import StageFailed
from tasks.registration.job import NotFinite, Verification, VerifyJob
from tasks.registration.loading import load_version, telling_failures
from tasks.worker import main, write_result

TOLERANCE = {"float32": 1e-4, "bfloat16": 2**-7, "float16": 2**-10}
"""Difference of a logit that rounding explains, relative to the largest one (or to 1)."""


def verify(job: VerifyJob) -> None:
    """Compare logits on the training's fixture, answer one request, write the result."""
    import torch
    from safetensors.torch import load_file

    started = time.monotonic()
    fixture = json.loads((job.fixture / "fixture.json").read_text(encoding="utf-8"))
    expected: Any = load_file(job.fixture / "fixture.safetensors")["logits"]
    rows: list[list[int]] = fixture["input_ids"]
    dtype = str(fixture["dtype"])
    with telling_failures():
        # On a GPU if this process was shown one: the parent has its lock.
        loaded = load_version(job.model_uri, {"base": str(job.base or ""), "dtype": dtype})
        model: Any = loaded.unwrap_python_model()
        last = expected.shape[1]
        differences, effects, sizes = [], [], []
        for number, (ids, wanted) in enumerate(zip(rows, expected, strict=True), start=1):
            got = model.logits(ids)[-last:]
            without = model.base_logits(ids)[-last:]
            where = f"row {number} of {len(rows)} of the fixture, {dtype}"
            for whose, logits, kind in (
                # Read from a file: no device changes it.
                ("the trained adapter", wanted, StageFailed),
                (job.model_uri, got, NotFinite),
                ("the base without the adapter", without, NotFinite),
            ):
                _check_finite(whose, logits, where, kind)
            differences.append((got - wanted).abs().max().item())
            effects.append((got - without).abs().max().item())
            sizes.append(wanted.abs().max().item())
    example = loaded.input_example or {"messages": [{"role": "user", "content": "Hello"}]}
    response: Any = loaded.predict(example)
    choice = response["choices"][0]
    write_result(
        job.result,
        Verification(
            rows=len(rows),
            positions=len(rows) * last,
            dtype=dtype,
            largest_difference=max(differences),
            tolerance=_tolerance(dtype, str(fixture.get("quantization") or "none"), max(sizes)),
            same_device=job.trained_on is None
            or job.trained_on.startswith("cpu") != torch.cuda.is_available(),
            adapter_effect=max(effects),
            answer=choice["message"]["content"],
            finish_reason=choice["finish_reason"],
            seconds=time.monotonic() - started,
        ),
    )


def _check_finite(whose: str, logits: Any, where: str, kind: type[StageFailed]) -> None:
    """NaN is neither above nor below a tolerance: it is refused before anything is compared."""
    bad = int((~logits.isfinite()).sum())
    if bad:
        raise kind(
            f"{bad} of {logits.numel()} logits of {whose} are NaN or infinite ({where}), so "
            "nothing can be proved of it, and it is not registered. Look at the loss of the training: "
            "where it became NaN, a lower learning rate or another dtype helps (float16 overflows "
            "where bfloat16 and float32 do not)."
        )


def _tolerance(dtype: str, quantization: str, largest: float) -> float:
    # Kernels for quantized weights add in an order of their own.
    factor = 1 if quantization == "none" else 5
    return factor * TOLERANCE[dtype] * max(largest, 1.0)


if __name__ == "__main__":
    main(VerifyJob, verify)
