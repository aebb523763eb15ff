"""Which secrets a recipe's run needs: by the environment variables that hold them, never by their values."""

import os
from collections.abc import Mapping
from typing import Any

from tasks.base import looks_local

OPTIONAL = ("HF_TOKEN",)
"""What is public on the Hub needs no token, and a recipe does not say what is."""
_S3 = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_S3_SCHEMES = ("s3://", "s3a://")


def secret_variables(
    recipe: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> list[str]:
    """The variables that a recipe, as written and perhaps wrong, names or whose secrets its sources need."""
    found: dict[str, None] = {}
    dataset = _section(recipe, "dataset")
    sources = dataset.get("sources")
    listed = [*(sources if isinstance(sources, list) else []), dataset.get("holdout")]
    for source in listed:
        if not isinstance(source, dict):
            continue
        if isinstance(variable := source.get("url_variable"), str):
            found[variable] = None
        if str(source.get("path", "")).startswith(_S3_SCHEMES):
            found.update(dict.fromkeys(_S3))
        if source.get("type") == "huggingface":
            found["HF_TOKEN"] = None
    if environ.get("LORALINE_STORE", "").startswith(_S3_SCHEMES):
        found.update(dict.fromkeys(_S3))
    base = recipe.get("base")
    model = base.get("model") if isinstance(base, dict) else base
    if isinstance(model, str) and not looks_local(model):
        found["HF_TOKEN"] = None
    judge = _section(_section(recipe, "evaluation"), "judge")
    if judge:
        found[str(judge.get("key_variable") or "OPENAI_API_KEY")] = None
    return list(found)


def block_name(variable: str) -> str:
    """The Secret block that stands for a variable: blocks take small letters, digits and dashes."""
    return variable.lower().replace("_", "-")


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}
