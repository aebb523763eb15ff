"""The steps of `loraline check`, each of which needs the one before: recipe, data, tokens, model."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts import Dataset, Tokens
from tasks.base import Base, resolve_base
from tasks.files import expanded
from tasks.home import Home
from tasks.methods import ROWS
from tasks.preflight import check_recipe
from tasks.recipe import Loaded, Recipe
from tasks.store import Store

if TYPE_CHECKING:
    from tasks.tokenization.preview import PreviewRow
    from tasks.training.job import Inspection


class RecipeCheck:
    """Every property does its work when it is first read, and raises what that raises.

    The dataset and the tokens go into the store: a run finds them complete. Only `model` starts a
    process that imports torch.
    """

    def __init__(self, path: Path, overrides: tuple[str, ...], home: Home) -> None:
        self.path = path
        self._overrides = overrides
        self._home = home
        self._store = Store.of(home)

    @cached_property
    def loaded(self) -> Loaded:
        """The recipe with its warnings. Raises: RecipeError with every mistake, of its data and base too."""
        return check_recipe(self.path, self._overrides)

    @property
    def recipe(self) -> Recipe:
        """The valid recipe."""
        return self.loaded.recipe

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared rows. Raises: DataError with every bad row."""
        from tasks.dataset.work import prepare_dataset

        self._home.prepare()
        return prepare_dataset(
            self._store,
            self.recipe.dataset,
            salt=self.recipe.split_salt,
            recipe_folder=expanded(self.path).absolute().parent,
        )

    @cached_property
    def base(self) -> Base:
        """The base model, downloaded if need be. Raises: BaseModelError."""
        return resolve_base(self.recipe.base, expanded(self.path).absolute(), self._home)

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenized rows. Raises: DataError for rows that cannot be trained on."""
        from tasks.tokenization.work import tokenize_dataset

        return tokenize_dataset(
            self._store,
            self.recipe.tokenization,
            dataset=self.dataset,
            base=self.base,
            kind=ROWS[self.recipe.training.method],
        )

    def preview(self, rows: int) -> "list[PreviewRow]":
        """The first training rows, their trained text told from the rest."""
        from tasks.tokenization.preview import preview

        return preview(self.tokens.path, self.base.path, rows=rows)

    @cached_property
    def model(self) -> "Inspection":
        """Parameters, modules, memory, time. Raises: UserError for modules that do not exist."""
        from tasks.training.inspection import inspect_training

        return inspect_training(
            self.recipe.training, base=self.base, tokens=self.tokens, home=self._home
        )


def card(output: Dataset | Tokens) -> dict[str, Any]:
    """The counts that the stage left beside its output."""
    text = (output.path / "card.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
