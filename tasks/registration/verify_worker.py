"""Load a version in this fresh process and compare it with the adapter that was trained."""

import json
import time
from typing import Any

from tasks.errors import UserError
from tasks.registration.job import Verification, VerifyJob
from tasks.worker import main, write_result

TOLERANCE = {"float32": 1e-4, "bfloat16": 2**-7, "float16": 2**-10}
"""Difference of a logit that rounding explains, relative to the largest one (or to 1)."""


def verify(job: VerifyJob) -> None:
    """Compare logits on the training's fixture, answer one request, write the result."""
    import mlflow
    from safetensors.torch import load_file

    started = time.monotonic()
    fixture = json.loads((job.fixture / "fixture.json").read_text(encoding="utf-8"))
    expected: Any = load_file(job.fixture / "fixture.safetensors")["logits"]
    rows: list[list[int]] = fixture["input_ids"]
    dtype = str(fixture["dtype"])
    mlflow.set_tracking_uri(job.tracking_uri)
    mlflow.set_registry_uri(job.tracking_uri)
    try:
        loaded = mlflow.pyfunc.load_model(
            job.model_uri,
            model_config={
                "base": str(job.base),
                "dtype": dtype,
                "device": str(fixture.get("device") or "auto"),
            },
        )
    except RuntimeError as error:
        # chat_model.py's own words: the adapter or the base is not the recorded one.
        raise UserError(str(error)) from error
    model: Any = loaded.unwrap_python_model()
    last = expected.shape[1]
    difference = effect = largest = 0.0
    for ids, wanted in zip(rows, expected, strict=True):
        got = model.logits(ids)[-last:]
        without = model.base_logits(ids)[-last:]
        difference = max(difference, (got - wanted).abs().max().item())
        effect = max(effect, (got - without).abs().max().item())
        largest = max(largest, wanted.abs().max().item())
    example = loaded.input_example or {"messages": [{"role": "user", "content": "Hello"}]}
    response: Any = loaded.predict(example)
    choice = response["choices"][0]
    write_result(
        job.result,
        Verification(
            rows=len(rows),
            positions=len(rows) * last,
            dtype=dtype,
            # A NaN compares as equal to nothing: it must not pass as "no difference".
            largest_difference=difference if difference == difference else float("inf"),
            tolerance=_tolerance(dtype, str(fixture.get("quantization") or "none"), largest),
            adapter_effect=effect,
            answer=choice["message"]["content"],
            finish_reason=choice["finish_reason"],
            seconds=time.monotonic() - started,
        ),
    )


def _tolerance(dtype: str, quantization: str, largest: float) -> float:
    # Kernels for quantized weights add in an order of their own.
    factor = 1 if quantization == "none" else 5
    return factor * TOLERANCE[dtype] * max(largest, 1.0)


if __name__ == "__main__":
    main(VerifyJob, verify)
