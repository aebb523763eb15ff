"""Recipes over small files, prepared as a run prepares them."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Dataset
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.work import prepare_dataset
from tasks.store import Store

WORDS = sorted(set(re.findall("[a-z]{3,}", Path(__file__).read_text(encoding="utf-8"))))


@dataclass(frozen=True)
class Sides:
    """What one preparation left."""

    dataset: Dataset

    def rows(self, side: str) -> list[dict[str, Any]]:
        text = (self.dataset.path / f"{side}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def ids(self, side: str) -> set[str]:
        return {row["id"] for row in self.rows(side)}

    def prompts(self, side: str) -> set[str]:
        return {row["messages"][0]["content"] for row in self.rows(side)}

    @property
    def card(self) -> dict[str, Any]:
        facts = json.loads((self.dataset.path / "card.json").read_text(encoding="utf-8"))
        assert isinstance(facts, dict)
        return facts

    @property
    def dropped(self) -> dict[str, int]:
        found = self.card["dropped"]
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Preparation:
    """Write files of rows into a recipe's folder and prepare them."""

    folder: Path

    def write(self, name: str, rows: list[Any]) -> None:
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (self.folder / name).write_text(text, encoding="utf-8")

    def __call__(self, rows: list[Any] | None = None, salt: str = "salt", **settings: Any) -> Sides:
        """Rows go into `rows.jsonl`; `source` adds to the settings of its source."""
        if rows is not None:
            self.write("rows.jsonl", rows)
        source = {"type": "files", "path": "rows.jsonl", **settings.pop("source", {})}
        recipe = {"sources": [source], "split": {"test": 0.2}, **settings}
        chosen = DatasetSettings.model_validate(recipe)
        store = Store(self.folder / "store")
        return Sides(prepare_dataset(store, chosen, salt=salt, recipe_folder=self.folder))


@pytest.fixture
def prepare(tmp_path: Path) -> Preparation:
    return Preparation(tmp_path)


@pytest.fixture
def words() -> Any:
    """Words drawn at random, the same in each run of a test."""
    draw = random.Random(0)
    return lambda count: " ".join(draw.choices(WORDS, k=count))
