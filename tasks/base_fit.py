"""What a recipe asks of its base model and its files refuse: there, whole, long enough, the right modules."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from tasks.base import (
    BaseSettings,
    bare_folder_problem,
    known_commit,
    local_folder,
    lock_path,
)
from tasks.base_folder import folder_problem
from tasks.errors import BaseModelError
from tasks.model_files import ModelFiles, Unreadable, read_model
from tasks.module_fit import wrong_modules, wrong_slices
from tasks.recipe_file import Document, Loc
from tasks.tokenization.settings import TokenizationSettings

MAX_LENGTH: Loc = ("tokenization", "max_length")
PEFT: Loc = ("training", "peft_config")
SLICES: Loc = ("training", "target_slices")


def base_misfits(document: Document, recipe: Path) -> Iterator[str]:
    """A line for each mistake that the base model's own files show. Nothing is fetched.

    Of a Hub model they are the files in the local cache; where it holds none, nothing is said.
    """
    given = document.get(("base",))
    loc: Loc = ("base", "model") if isinstance(given, dict) else ("base",)
    try:
        settings = BaseSettings.model_validate(
            given if isinstance(given, dict) else {"model": given}, strict=True
        )
    except ValidationError:
        return
    try:
        folder = _local(settings, recipe) if settings.is_local else _cached(settings, recipe)
        model = read_model(folder) if folder is not None else None
    except Unreadable as error:
        yield document.line(loc, str(error))
        return
    except BaseModelError as error:
        yield str(error)
        return
    if model is None:
        return
    if text := _too_long(document, model, settings.model):
        yield document.line(MAX_LENGTH, text)
    for field, text in wrong_modules(document.get(PEFT, {}), model, settings.model):
        yield document.line((*PEFT, field), text)
    slices, peft_config = document.get(SLICES, {}), document.get(PEFT, {})
    for module, text in wrong_slices(slices, peft_config, model, settings.model):
        yield document.line((*SLICES, module), text)


def _local(settings: BaseSettings, recipe: Path) -> Path:
    folder = local_folder(settings, recipe)
    if problem := folder_problem(folder):
        raise Unreadable(f"{settings.model} {problem}")
    return folder


def _cached(settings: BaseSettings, recipe: Path) -> Path | None:
    """The snapshot in the Hub's local cache.

    Raises: Unreadable where the id cannot be one, or the model is not here and must not be fetched.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if problem := bare_folder_problem(settings, recipe):
        raise Unreadable(f"{settings.model} {problem}")
    try:
        validate_repo_id(settings.model)
    except HFValidationError as error:
        what = " ".join(str(error).split()).rstrip(".")
        raise Unreadable(
            f"{settings.model!r} is neither a folder nor a Hub id ({what}). "
            "A folder starts with `./`, `../`, `~` or `/`; a Hub id looks like `owner/name`."
        ) from error
    commit = known_commit(settings, recipe)
    config = try_to_load_from_cache(
        settings.model,
        "config.json",
        cache_dir=constants.HF_HUB_CACHE,
        revision=commit or settings.revision,
    )
    if isinstance(config, str):
        return Path(config).parent
    # Where the lock is about another model, the state folder may know a commit that is here.
    if constants.HF_HUB_OFFLINE and (commit or not lock_path(recipe).is_file()):
        raise Unreadable(
            f"{settings.model}@{commit or settings.revision} is not in the local Hub cache "
            f"({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to fetch it. Unset it, copy the "
            "cache of a machine that has the model, or name a local folder."
        )
    return None


def _too_long(document: Document, model: ModelFiles, name: str) -> str | None:
    default = TokenizationSettings().max_length
    length = document.get(MAX_LENGTH, default)
    limit = model.context
    if limit is None or not isinstance(length, int) or length <= limit:
        return None
    unwritten = "" if document.get(MAX_LENGTH) else ", the default"
    return (
        f"is {length:,} tokens{unwritten}, and the context of {name} is {limit:,}. "
        f"Write `max_length: {limit}` or less, or choose a base with a longer context."
    )
