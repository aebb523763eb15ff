"""What the merging worker is asked and what it answers, and the certificate that comes of it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

Dtype = Literal["bf16", "fp16", "fp32"]
TORCH_NAMES: dict[str, Dtype] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""What a model's config.json calls them."""
CERTIFICATE = "certificate.json"


class MergeJob(BaseModel):
    """Merge an adapter into its base, save it, and compare what was saved with adapter-on-base."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    adapter: Path
    manifest: Path
    base: Path
    """The unquantized base, of which the sha256 is checked again before it is read."""
    loading: dict[str, Any]
    """The version's own configuration of chat_model.py."""
    fixture: Path
    """Folder of the version's `fixture.json` and `fixture.safetensors`."""
    dtype: Dtype
    draft: Path
    """An empty folder for the merged model."""
    result: Path


class Merged(BaseModel):
    """What the worker measured, or why there is nothing to measure."""

    problem: str | None = None
    rows: int = 0
    positions: int = 0
    largest_difference: FiniteFloat = 0.0
    largest_logit: FiniteFloat = 0.0
    adapter_effect: FiniteFloat = 0.0
    difference_from_training: FiniteFloat | None = None


class Certificate(BaseModel):
    """`certificate.json`: how far the merged model is from the adapter on its base, and of which files."""

    model_config = ConfigDict(frozen=True)

    version: str
    """`models:/NAME/VERSION`."""
    adapter_sha256: str
    base_model: str
    base_sha256: str
    dtype: Dtype
    """Of the merged weights."""
    trained_on: str
    """`none`, or how the base was quantized in training. The merge is into the unquantized base."""
    rows: int
    positions: int
    """Token positions compared, over all rows of the version's fixture."""
    arithmetic: str = "float32"
    """Of both sides, so that the difference is that of the weights."""
    largest_difference: FiniteFloat
    """Largest absolute difference of a logit between the merged model, as saved, and adapter-on-base."""
    tolerance: FiniteFloat
    largest_logit: FiniteFloat
    adapter_effect: FiniteFloat
    """Largest absolute difference that the adapter makes to a logit of the base on the same rows."""
    difference_from_training: FiniteFloat | None
    """Adapter-on-base against the logits recorded at training's end, which had the training's dtype and
    quantization; for the reader, not judged."""
    libraries: dict[str, str]
    files: dict[str, str]
    """sha256 of every file of the folder but this one."""
