"""The README.md of an exported model: a model card in Hugging Face's form, made from the version alone."""

import math
from collections.abc import Mapping
from typing import Any

import yaml

from tasks.evaluation.gate_table import gate_markdown
from tasks.export.job import Certificate
from tasks.export.publishable import publishable, publishable_text
from tasks.export.reach import vllm_problems
from tasks.export.usage import Kind, usage
from tasks.export.version import ExportedVersion
from tasks.markdown import cell, table

SHOWN_SECTIONS = ("seed", "tokenization", "training", "evaluation")
"""Of the recipe. Where its rows come from is nobody's business."""
METRIC_TYPES = {"rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge", "rougeLsum": "rouge"}
"""The Hub's name of a metric, where it is not ours."""
_LIBRARIES: dict[Kind, str] = {
    "peft": "peft",
    "merged": "transformers",
    "loralib": "peft",
    "gguf-adapter": "peft",
    "gguf-model": "gguf",
}
_RELATIONS: dict[Kind, str] = {
    "peft": "adapter",
    "merged": "finetune",
    "loralib": "adapter",
    "gguf-adapter": "adapter",
    "gguf-model": "quantized",
}


def model_card(version: ExportedVersion, kind: Kind, certificate: Certificate | None) -> str:
    """The card: front matter for the Hub, then what a person asks. No secret and no absolute path."""
    return "\n".join(
        [
            "---",
            _front_matter(version, kind),
            "---",
            "",
            f"# {publishable_text(version.name)}, version {version.number}",
            "",
            *_about(version),
            *_certified(version, certificate),
            "## Use",
            "",
            usage(version, kind),
            "",
            *_limits(version, kind),
            *_metrics(version),
            *_gate(version),
            *_dataset(version),
            *_recipe(version),
        ]
    )


def _front_matter(version: ExportedVersion, kind: Kind) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    digest = str(version.dataset.get("digest") or "")[:12]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="private",
            dataset_name=f"held-out rows of {publishable_text(version.name)}",
            dataset_split="test",
            dataset_revision=digest or None,
            metric_type=METRIC_TYPES.get(name, name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in _numbers(version.metrics.get("challenger")).items()
    ]
    data = ModelCardData(
        base_model=version.base_model,
        base_model_relation=_RELATIONS[kind],
        library_name=_LIBRARIES[kind],
        pipeline_tag="text-generation",
        tags=["lora", "loraline", *(["base_model:adapter"] * (_RELATIONS[kind] == "adapter"))],
        model_name=publishable_text(version.name),
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _about(version: ExportedVersion) -> list[str]:
    """The description's own paragraphs; its table, its verdict and its way of loading have sections here."""
    paragraphs = []
    for paragraph in version.description.split("\n\n"):
        if paragraph.startswith(("|", "```", "Gate:")):
            break
        paragraphs.append(publishable_text(paragraph))
    commit = f", commit `{version.base_commit}`" if version.base_commit else ""
    base = f"Base model: `{version.base_model}`{commit}, sha256 `{version.base_sha256}`."
    return [*(line for p in paragraphs for line in (p, "")), base, ""]


def _certified(version: ExportedVersion, certificate: Certificate | None) -> list[str]:
    if certificate is None:
        return []
    lines = [
        f"The adapter is merged into the weights ({certificate.dtype}). On {certificate.rows} recorded prompts "
        f"({certificate.positions} positions) no logit differs by more than "
        f"{certificate.largest_difference:.3g} from the adapter on its base; {certificate.tolerance:.3g} "
        f"was allowed, and the adapter itself changes them by up to {certificate.adapter_effect:.3g}. "
        "`certificate.json` has the figures and the sha256 of every file.",
        "",
    ]
    if version.trained_on != "none":
        lines += [
            f"The adapter was trained on the base quantized to {version.trained_on} and is merged into the "
            "unquantized base: the answers are close to those of the training, and not the same.",
            "",
        ]
    return lines


def _limits(version: ExportedVersion, kind: Kind) -> list[str]:
    problems = vllm_problems(version.adapter_config) if kind == "peft" else []
    if not problems:
        return []
    return [
        "vLLM does not serve this adapter as it is:",
        "",
        *(f"- {problem}" for problem in problems),
        "",
    ]


def _metrics(version: ExportedVersion) -> list[str]:
    mine = _numbers(version.metrics.get("challenger"))
    if not mine:
        return []
    others = [name for name in ("base", "champion") if _numbers(version.metrics.get(name))]
    lines = []
    for name, value in mine.items():
        row = [_number(_numbers(version.metrics[other]).get(name)) for other in others]
        lines.append([cell(name, 80), *row, _number(value)])
    titles = {"base": "base", "champion": "champion of that day"}
    head = ["metric", *(titles[other] for other in others), "this version"]
    return ["## Metrics", "", table(head, lines), ""]


def _gate(version: ExportedVersion) -> list[str]:
    words = {
        "passed": "The gate let this version through.",
        "refused": "**The gate refused this version.**",
    }
    told = words.get(version.gate, "The recipe has no gate: nothing was asked of this version.")
    lines = ["## Gate", "", told, ""]
    if version.verdict.get("rules"):
        lines += [publishable_text(gate_markdown(version.verdict)), ""]
    return lines


def _dataset(version: ExportedVersion) -> list[str]:
    card = version.dataset
    counts = [(f"{side} rows", count) for side, count in dict(card.get("rows") or {}).items()] + [
        (f"dropped ({why})", count) for why, count in _dropped(card.get("dropped"))
    ]
    if not counts:
        return []
    rows = [[cell(publishable_text(str(name)), 120), f"{count:,}"] for name, count in counts]
    digest = [f"Digest: `{card['digest']}`.", ""] if card.get("digest") else []
    return ["## Data", "", table(["what", "rows"], rows), "", *digest]


def _dropped(value: Any) -> list[tuple[str, int]]:
    """Reason -> count; a card may hold more than numbers there."""
    if not isinstance(value, Mapping):
        return []
    return [(str(why), count) for why, count in value.items() if isinstance(count, int) and count]


def _recipe(version: ExportedVersion) -> list[str]:
    shown = {key: version.recipe[key] for key in SHOWN_SECTIONS if key in version.recipe}
    if not shown:
        return []
    text = yaml.safe_dump(publishable(shown), sort_keys=False, allow_unicode=True).strip()
    return ["## Recipe", "", "```yaml", text.replace("```", "` ` `"), "```", ""]


def _numbers(values: Any) -> dict[str, float]:
    """The finite ones: the Hub refuses a card with a NaN."""
    if not isinstance(values, Mapping):
        return {}
    return {
        str(name): value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
