"""What a version holds: the adapter, the code that loads it, its proof and its papers; never the base."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base import Base
from tasks.home import Home
from tasks.store import digest
from tasks.version_manifest import MANIFEST, adapter_manifest, write_manifest

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CHAT_MODEL = Path(__file__).with_name("chat_model.py")
REQUIREMENTS = (
    "mlflow",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "jinja2",
    "pandas",
    "huggingface-hub",
    "accelerate",
)
"""What chat_model.py imports, and what loading a model through these needs."""
INPUT_EXAMPLE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 32,
}


@dataclass(frozen=True)
class Contents:
    """The files of a version, gathered in one folder, and what they are known by."""

    folder: Path
    """`adapter/`, `fixture/` and `about/`."""
    fingerprint: str
    """sha256 over the adapter's files and the base's sha256: equal for the same adapter on the same base."""
    base: Base
    """What the adapter belongs on; not among the files."""
    fixture: dict[str, Any]

    @property
    def adapter(self) -> Path:
        """The folder that PEFT loads."""
        return self.folder / "adapter"


def gather(
    folder: Path, *, adapter: Path, fixture: Path, base: Base, about: Mapping[str, Path | str]
) -> Contents:
    """Copy what belongs into a version to `folder`.

    `fixture` is the folder of `fixture.json` and `fixture.safetensors`; `about` maps file names to
    files or texts that are kept with the version.
    """
    # README.md is PEFT's form for the Hub; it repeats the base's path, and the version has its own text.
    shutil.copytree(adapter, folder / "adapter", ignore=shutil.ignore_patterns("README.md"))
    _make_portable(folder / "adapter" / "adapter_config.json")
    for name in ("fixture.json", "fixture.safetensors"):
        (folder / "fixture").mkdir(exist_ok=True)
        shutil.copyfile(fixture / name, folder / "fixture" / name)
    (folder / "about").mkdir()
    for name, source in about.items():
        if isinstance(source, Path):
            shutil.copyfile(source, folder / "about" / name)
        else:
            (folder / "about" / name).write_text(source, encoding="utf-8")
    return Contents(
        folder=folder,
        fingerprint=digest(adapter_manifest(folder / "adapter", base.weights_sha256)),
        base=base,
        fixture=json.loads((folder / "fixture" / "fixture.json").read_text(encoding="utf-8")),
    )


def model_config(
    *,
    name: str,
    base: Base,
    recipe_path: Path,
    contents: Contents,
    max_tokens: int,
    home: Home,
) -> dict[str, Any]:
    """What chat_model.py reads when it is loaded; each key can be overridden by the one who loads.

    Holds no absolute path: a local base is recorded relative to the recipe's folder, and the recipe
    as `recorded_path` says. What is found there must have the recorded sha256.
    """
    local = base.commit is None
    return {
        "name": name,
        "base": "",
        "base_model": base.shown,
        "base_commit": base.commit or "",
        "base_path": _base_path(base, recipe_path) if local else "",
        "base_sha256": base.weights_sha256,
        "recipe": recorded_path(recipe_path, home),
        "max_tokens": max_tokens,
        "batch_size": 8,
        "device": "auto",
        "dtype": "auto",
        "quantization": str(contents.fixture.get("quantization") or "none"),
    }


def recorded_path(recipe: Path, home: Home) -> str:
    """The recipe relative to the working directory or to the folder that holds the state folder.

    To the nearer one where it lies below both, its name alone where below neither. A version usually
    lies below these folders, so that a process finds the recipe's folder wherever it starts.
    """
    place = recipe.resolve()
    roots = [root.resolve() for root in (Path.cwd(), home.root.parent)]
    ways = [place.relative_to(root) for root in roots if place.is_relative_to(root)]
    return min(ways, key=lambda way: len(way.parts), default=Path(recipe.name)).as_posix()


def requirements(contents: Contents) -> list[str]:
    """Exact versions without local parts: `torch==2.13.0` is on the index, `2.13.0+cpu` is not."""
    names = [*REQUIREMENTS, *(["bitsandbytes"] * _needs_bitsandbytes(contents))]
    return [f"{name}=={installed(name).partition('+')[0]}" for name in names]


def signature() -> "ModelSignature":
    """Chat in, chat out, as OpenAI's API has it; stated, so that MLflow need not run the model."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, Property, Schema

    text, whole = DataType.string, DataType.long
    message = Object([Property("role", text), Property("content", text)])
    choice = Object(
        [Property("index", whole), Property("message", message), Property("finish_reason", text)]
    )
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(Array(message), "messages"),
                # MLflow makes a table of the requests. There a row without the value holds NaN, which
                # it refuses for whole numbers, as it refuses a whole number for a real one. The model
                # itself checks these values.
                *(
                    ColSpec(AnyType(), name, required=False)  # type: ignore[no-untyped-call]
                    for name in ("max_tokens", "temperature", "top_p", "seed")
                ),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(text, "id"),
                ColSpec(text, "object"),
                ColSpec(whole, "created"),
                ColSpec(text, "model"),
                ColSpec(Array(choice), "choices"),
                ColSpec(Object([Property(name, whole) for name in counts]), "usage"),
            ]
        ),
    )


def write_model(
    folder: Path, contents: Contents, config: dict[str, Any], *, run_id: str, model_id: str
) -> str:
    """Write an MLflow model to `folder` (which must not exist yet), with no path of this machine in it.

    Returns the digest over the sha256 of its files, which the version's tag `loraline.files_sha256` holds.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, save_model

    # MLflow wants it now; what it says is known when everything else is written.
    manifest = contents.folder / Path(MANIFEST).name
    manifest.touch()
    model = Model(run_id=run_id, model_id=model_id, model_uuid=model_id)
    with _quiet("mlflow.pyfunc", "mlflow.models.signature", "mlflow.utils.requirements_utils"):
        save_model(
            path=str(folder),
            python_model=str(CHAT_MODEL),
            mlflow_model=model,
            artifacts={
                **{name: str(contents.folder / name) for name in ("adapter", "fixture", "about")},
                "manifest": str(manifest),
            },
            model_config=config,
            signature=signature(),
            input_example=INPUT_EXAMPLE,
            pip_requirements=requirements(contents),
        )
    # MLflow notes where the files came from on this machine.
    flavor = model.flavors[FLAVOR_NAME]
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    flavor["model_code_path"] = CHAT_MODEL.name
    model.save(str(folder / "MLmodel"))
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    return write_manifest(folder, contents.base.weights_sha256)


def _needs_bitsandbytes(contents: Contents) -> bool:
    """Whether the base is quantized when it is loaded, or holds weights that bitsandbytes quantized."""
    if str(contents.fixture.get("quantization") or "none") != "none":
        return True
    config = json.loads((contents.base.path / "config.json").read_text(encoding="utf-8"))
    stored = config.get("quantization_config") or {}
    return bool(
        stored.get("quant_method") == "bitsandbytes"
        or stored.get("load_in_4bit")
        or stored.get("load_in_8bit")
    )


def _base_path(base: Base, recipe: Path) -> str:
    """The base from the recipe's folder: as the recipe says, where it says it relatively."""
    if not base.model.startswith(("/", "~")):
        return base.model
    return Path(os.path.relpath(base.path, recipe.resolve().parent)).as_posix()


def _make_portable(config: Path) -> None:
    """Replace an absolute path of the base in `adapter_config.json` by the folder's name."""
    values = json.loads(config.read_text(encoding="utf-8"))
    base = str(values.get("base_model_name_or_path") or "")
    if re.match(r"^([/~]|[A-Za-z]:[\\/])", base):
        values["base_model_name_or_path"] = Path(base).name
        config.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Hold back these loggers' notes below errors: they advise what is done here on purpose."""
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
