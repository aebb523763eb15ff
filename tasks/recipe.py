"""A recipe: one YAML file per adapter, one section per stage."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tasks.base import BaseSettings
from tasks.dataset.settings import DatasetSettings
from tasks.errors import RecipeError
from tasks.evaluation.settings import PREFERENCE_METRICS, EvaluationSettings
from tasks.methods import COMPARED, ROWS
from tasks.names import NAME_PATTERN
from tasks.promotion.settings import PromotionSettings
from tasks.registration.settings import RegistrationSettings
from tasks.retention.settings import RetentionSettings
from tasks.schedule import ScheduleSettings
from tasks.settings import Settings
from tasks.tokenization.settings import TokenizationSettings
from tasks.training.settings import TrainingSettings

if TYPE_CHECKING:
    from tasks.recipe_file import Document

_log = logging.getLogger(__name__)


def _shorthand(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


class Recipe(Settings):
    """Everything that decides an adapter."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the adapter: registered model, MLflow experiment, schedule."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of adapter initialisation, data order and dropout. Never decides which rows are test rows."""
    base: Annotated[BaseSettings, BeforeValidator(_shorthand)]
    """The base model: a local folder or a Hub id; or a mapping with `model` and `revision`."""
    dataset: DatasetSettings
    tokenization: TokenizationSettings = TokenizationSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    registration: RegistrationSettings = RegistrationSettings()
    promotion: PromotionSettings = PromotionSettings()
    retention: RetentionSettings = RetentionSettings()
    schedule: ScheduleSettings | None = None

    @model_validator(mode="after")
    def _tokens_fit_the_method(self) -> "Recipe":
        """What `tokenization` may say depends on the rows that `training.method` learns from."""
        kind, asked = ROWS[self.training.method], self.tokenization
        where = f"training.method is {self.training.method}"
        if kind in COMPARED and asked.packing:
            raise ValueError(f"{where}, whose pairs are never packed: delete tokenization.packing")
        if kind in COMPARED and asked.train_on == "all":
            raise ValueError(
                f"{where}, which compares answers: delete tokenization.train_on, or train by sft"
            )
        if kind in COMPARED and asked.long_rows == "split_turns":
            raise ValueError(
                f"{where}, and a pair has one answer to compare: tokenization.long_rows may be "
                "error, drop or truncate_prompt"
            )
        if asked.packing and self.training.training_config.get("neftune_noise_alpha"):
            raise ValueError(
                "training.training_config.neftune_noise_alpha is noise scaled by the length of a row, and "
                "tokenization.packing makes one row of many: delete one of the two"
            )
        if kind not in COMPARED:
            self._refuse_preference_rules(where)
        if kind == "texts" and asked.train_on != "assistant":
            raise ValueError(
                f"{where}, which learns every token of a text: delete tokenization.train_on"
            )
        return self

    def _refuse_preference_rules(self, where: str) -> None:
        rules = [rule.metric for rule in self.evaluation.gate if rule.metric in PREFERENCE_METRICS]
        if rules:
            raise ValueError(
                f"{where}, so no test row has a worse answer, and evaluation.gate asks for {rules[0]}: no "
                "adapter could pass. Take the rule out, or train by dpo, orpo or kto"
            )

    @property
    def model_name(self) -> str:
        """The registered model's name."""
        return self.registration.model_name or self.name

    @property
    def split_salt(self) -> str:
        """The salt of the split; the recipe's name unless the recipe says otherwise."""
        return self.dataset.split.salt or self.name


@dataclass(frozen=True)
class Loaded:
    """A valid recipe and what its author should know."""

    recipe: Recipe
    warnings: tuple[str, ...]
    """Each `file:line: field: what was read instead, and the line to write`."""
    path: Path


def read_recipe(
    path: Path,
    overrides: tuple[str, ...] = (),
    *,
    more: "Callable[[Document], Iterable[str]]" = lambda document: (),
) -> Loaded:
    """Read, override, translate and validate a recipe.

    An override is `section.field=value` with a YAML value. `more` looks at the document, valid or
    not, for mistakes that no schema knows (`tasks.preflight`). Raises RecipeError with every mistake,
    one a line: `file:line: field: what is wrong. Did you mean ...?`.
    """
    from tasks.recipe_file import apply_override, read_document
    from tasks.recipe_mistakes import mistakes_of
    from tasks.training.translate import translate

    document = read_document(path)
    for override in overrides:
        apply_override(document, override)
    warnings = translate(document)
    recipe = None
    try:
        recipe = Recipe.model_validate(document.data, strict=True)
    except ValidationError as error:
        document.mistakes.extend(mistakes_of(error, document, Recipe))
    document.mistakes.extend(more(document))
    if recipe is None or document.mistakes:
        raise RecipeError("\n".join(_in_order(document.mistakes)))
    return Loaded(recipe, tuple(_in_order(warnings)), path)


def recipe_digest(recipe: Recipe) -> str:
    """sha256 (hex) of what the recipe means: no comments, no schedule, nothing about the disk."""
    from tasks.store import digest

    return digest(recipe.model_dump(mode="json", exclude={"schedule", "retention"}))


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """`read_recipe`, with the warnings logged."""
    loaded = read_recipe(path, overrides)
    for warning in loaded.warnings:
        _log.warning(warning)
    return loaded.recipe


def _in_order(messages: list[str]) -> list[str]:
    """Each message once, in the file's order; those about `--set` last."""

    def line_number(message: str) -> tuple[bool, int]:
        number = message.split(": ", 1)[0].rpartition(":")[2]
        return message.startswith("--set"), int(number) if number.isdigit() else 0

    return sorted(dict.fromkeys(messages), key=line_number)
