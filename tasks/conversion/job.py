"""What the conversion's worker is asked and what it answers."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.conversion.sidecar import BiasMode, Sidecar

Kind = Literal["Linear", "MergedLinear", "Embedding", "Conv2d"]
"""loralib's layers, by the names of their classes."""

RECORD = "loralib.json"
"""In an adapter's folder: what it was as a loralib checkpoint, read on the way back."""


class ConversionJob(BaseModel):
    """Turn a loralib checkpoint into an adapter's folder, or back."""

    model_config = ConfigDict(frozen=True)

    to: Literal["peft", "loralib"]
    source: Path
    """To PEFT: the checkpoint's file. To loralib: the adapter's folder."""
    base: Path
    """Folder with the base's config.json (its weights are not needed), or a file of a plain model's weights."""
    base_name: str
    """What the adapter's configuration calls the base."""
    base_commit: str | None
    sidecar: Sidecar
    draft: Path
    """The result before it is published: a folder for PEFT, a file for loralib."""
    record: Path
    """The sidecar as completed by the conversion."""
    result: Path


class ConvertedModule(BaseModel):
    """One adapted module as both sides see it."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    r: int
    alpha: float
    enable_lora: list[bool] | None
    peft_r: int
    peft_alpha: float


class Conversion(BaseModel):
    """What was converted."""

    model_config = ConfigDict(frozen=True)

    modules: list[ConvertedModule]
    bias: BiasMode
    num_biases: int
    notes: list[str]
    """What a person should know: what was left out, what the base makes of it."""
