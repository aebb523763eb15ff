"""Whether a folder holds a base model that can be loaded: config, safetensors weights, tokenizer."""

import json
from pathlib import Path

WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def weight_files(folder: Path) -> list[Path]:
    """The config, the safetensors files and their index, sorted."""
    return sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))


def folder_problem(folder: Path) -> str | None:
    """What keeps a local folder from being a base, in the words that follow its name; None if nothing.

    Looks at names and at the index of the weights; the weights themselves are not read.
    """
    if (folder / "config.json").is_file():
        problem = files_problem(folder)
        return f"({folder}) {problem}" if problem else None
    if not folder.is_dir():
        what = "does not exist" if not folder.exists() else "is a file and no folder"
    elif (folder / "adapter_config.json").is_file():
        what = "holds a LoRA adapter and not a whole model"
    else:
        what = "holds no config.json"
    return (
        f"is {folder}, which {what}. "
        "Correct the path (relative paths start at the recipe's folder), or name a Hub id."
    )


def files_problem(folder: Path) -> str | None:
    """What the model's folder lacks besides its config, in the words that follow the model's name."""
    weights = weight_files(folder)
    if not any(path.suffix == ".safetensors" for path in weights):
        others = sorted(path.name for path in folder.glob("*.bin"))
        found = f" It has {', '.join(others[:3])}, which loading would execute." if others else ""
        return (
            "has no .safetensors file, the only weight format that loraline loads."
            f"{found} Convert it with transformers' save_pretrained, or choose another base."
        )
    for index in weights:
        if index.name.endswith(".index.json") and (problem := _index_problem(folder, index)):
            return problem
    if not (folder / "tokenizer.json").is_file():
        return (
            "has no tokenizer.json. "
            "Save it once with transformers' AutoTokenizer(...).save_pretrained, which writes one."
        )
    return None


def _index_problem(folder: Path, index: Path) -> str | None:
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in named if not (folder / name).is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return (
            f"has {index.name}, which is not an index of weight files ({error!r}). "
            "Delete the folder and fetch the model again."
        )
    if not missing:
        return None
    return (
        f"is incomplete: {index.name} names {', '.join(missing)}, which "
        f"{'is' if len(missing) == 1 else 'are'} not there. "
        "Fetch the rest with the network on (`hf download`), or copy it there."
    )
