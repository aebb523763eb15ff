"""What a model's files say of it before it is loaded: its config, the names and shapes of its weights."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LARGEST_HEADER = 100_000_000
"""Bytes; safetensors itself reads no larger one."""
_EMBEDDINGS = ("embed", "wte", "wpe")


class Unreadable(ValueError):
    """A file is not what its name says; the message names it and the way out."""


@dataclass(frozen=True)
class ModelFiles:
    """A model as its folder describes it."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    """Every stored tensor's name and shape; empty where the weights are not here."""

    @property
    def model_type(self) -> str:
        """`phi3`, `llama`; empty where the config names none."""
        return str(self.config.get("model_type") or "")

    @property
    def is_composite(self) -> bool:
        """Whether a language model is one part of it, beside an image encoder for example."""
        return any(
            isinstance(self.config.get(name), dict) for name in ("text_config", "llm_config")
        )

    @property
    def width(self) -> int | None:
        """The size of the vectors between the layers; None where the config gives none."""
        named = (_count(self._language.get(name)) for name in ("hidden_size", "n_embd", "d_model"))
        return next((count for count in named if count), None)

    @property
    def _language(self) -> dict[str, Any]:
        """The config, that of the language model within a composite one laid over it."""
        inner = self.config.get("text_config")
        return {**self.config, **inner} if isinstance(inner, dict) else self.config

    @property
    def context(self) -> int | None:
        """The longest row in tokens that the config allows; None where it sets no limit.

        A rope that is stretched by a `factor` allows so many times more. Some configs count that in
        `max_position_embeddings` already and some do not; the larger reading is taken, so that no row
        is refused that the model was made for. A sliding window limits what a token sees, not the row.
        """
        config = self._language
        # GPT-2 and its descendants learn a vector for each position, under another name.
        named = (_count(config.get(name)) for name in ("max_position_embeddings", "n_positions"))
        limit = next((count for count in named if count), None)
        if limit is None:
            return None
        longest = [limit]
        for rope in _ropes(config):
            factor = rope.get("factor")
            start = _count(rope.get("original_max_position_embeddings")) or limit
            if isinstance(factor, int | float) and factor > 1:
                longest.append(int(factor * start))
        return max(longest)

    def linear_modules(self) -> tuple[list[str], str]:
        """Full names of the modules with a weight matrix, embeddings left out, and of the output head.

        The head is named even where its weight is the embeddings' and stored nowhere.
        """
        vocabulary = self.config.get("vocab_size")
        head = "lm_head"
        names: dict[str, None] = {}
        for tensor, shape in self.shapes.items():
            module = tensor.rpartition(".")[0]
            last = module.rpartition(".")[2]
            if len(shape) < 2 or any(part in last for part in _EMBEDDINGS) or last == head:
                continue
            if shape[0] != vocabulary:
                names[module] = None
        return [*names, head], head


def read_model(folder: Path) -> ModelFiles:
    """Read the config, and the headers of the safetensors files: kilobytes, whatever the model's size.

    Raises: Unreadable for a config that is no JSON, or weights that are cut off or not fetched.
    """
    config = _config(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes |= _header(file)
    return ModelFiles(config, shapes)


def base_width(folder: Path) -> int | None:
    """`ModelFiles.width`, from the config alone. Raises: Unreadable for one that is no JSON."""
    return ModelFiles(_config(folder), {}).width


def base_context(folder: Path) -> int | None:
    """`ModelFiles.context`, from the config alone. Raises: Unreadable for one that is no JSON."""
    return ModelFiles(_config(folder), {}).context


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unreadable(
            f"{path} cannot be read as JSON ({error}). Copy or fetch the model again."
        ) from error
    if not isinstance(config, dict):
        raise Unreadable(f"{path} is not a model's config. Copy or fetch the model again.")
    return config


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a safetensors file (its format: a length of 8 bytes, JSON, the data)."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(b"version "):
                raise Unreadable(
                    f"{file} is the pointer that Git LFS leaves in place of the weights. "
                    "Fetch them in that clone with `git lfs pull`."
                )
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(size - 8, _LARGEST_HEADER):
                raise Unreadable(_damaged(file, size))
            header = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
    except OSError as error:
        raise Unreadable(
            f"{file} cannot be read ({error.strerror or error}). Mend its permissions."
        ) from error
    except Unreadable:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Unreadable(_damaged(file, size)) from error
    if size < 8 + length + end:
        raise Unreadable(_damaged(file, size))
    return shapes


def _damaged(file: Path, size: int) -> str:
    return (
        f"{file} ({size:,} bytes) is no whole safetensors file: it is damaged or cut off. "
        "Copy or fetch it again."
    )


def _ropes(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The ways in which positions are stretched: one, or one for each kind of layer."""
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if isinstance(rope, dict):
            found += [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return found


def _count(value: object) -> int | None:
    """The value where it is a positive whole number."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    return None
