"""Make a registered version again from its recorded recipe, and see whether the same adapter comes out."""

import importlib.metadata
import logging
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts import Adapter
from tasks.base import Base, resolve_base
from tasks.errors import UserError
from tasks.files import expanded
from tasks.home import Home
from tasks.methods import ROWS
from tasks.recipe import Recipe, load_recipe, recipe_digest
from tasks.registration.making import Making
from tasks.start import Beginning, Start, recorded_start
from tasks.store import Store
from tasks.tracking import Tracker

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduction:
    """What came out."""

    model: str
    expected: str
    """sha256 of the version's adapter."""
    found: str | None
    """sha256 of the adapter that was trained now; None when an input is not what it was."""
    differences: list[str] = field(default_factory=list)
    """What is not as it was: inputs, libraries, hardware."""

    @property
    def equal(self) -> bool:
        """Whether the same adapter came out, byte for byte."""
        return self.found == self.expected


def reproduce(
    making: Making,
    home: Home,
    *,
    recipe: Path | None = None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Reproduction:
    """Read the data, tokenize and train again, in a fresh folder that knows no earlier checkpoint.

    `recipe` is the recipe's file today, where it is not found by itself: paths in the recorded one
    start from its folder. Nothing is registered. Where base or dataset differ, nothing is trained.

    A version that started from another one is started from it again.

    Raises: UserError when recipe, base, data or that version cannot be found; StageFailed when a stage fails.
    """
    place = expanded(recipe or _find(making, home)).absolute()
    scratch = home.work / f"reproduction-{uuid.uuid4().hex[:12]}"
    scratch.mkdir(parents=True)
    recorded = _recorded(making, place, scratch / place.name)
    base = resolve_base(recorded.base, place, home)
    differences = _libraries(making)
    inputs = _base_differences(making, base)
    start = recorded_start(making.training.get("start"), Tracker(home))
    tokens, digest = _tokens(recorded, place, base, home, start)
    if digest != making.dataset_digest:
        inputs.append(
            f"dataset: its digest was {making.dataset_digest[:12]} and is {digest[:12]}; the sources hold "
            "other rows than they did"
        )
    if inputs:
        shutil.rmtree(scratch)
        return Reproduction(making.uri, making.adapter_sha256, None, inputs + differences)

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "note":
            on_note(str(event["message"]))

    # Left behind when it fails: the log is below.
    adapter = _trained(recorded, tokens, base, Home(scratch), hear, start)
    differences += _hardware(making, adapter)
    shutil.rmtree(scratch)
    return Reproduction(making.uri, making.adapter_sha256, adapter.sha256, differences)


def _find(making: Making, home: Home) -> Path:
    here = Path.cwd()
    roots = [here, *here.parents, home.root.parent]
    places = [root / making.recipe_place for root in roots] if making.recipe_place else []
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"{making.uri} was made by {making.recipe_place or 'a recipe'}, which is not found from "
            f"{here}. Name it with --recipe: the paths of the recorded recipe start from its folder."
        )
    return found


def _recorded(making: Making, place: Path, copy: Path) -> Recipe:
    """The recipe as it was run, with the base that it was run on.

    A recorded recipe has no absolute paths; today's file has them, if it means the same.
    """
    copy.write_text(making.recipe_text, encoding="utf-8")
    recipe = load_recipe(copy)
    if (today := _as_it_was(making, place)) is not None:
        recipe = today
    elif making.base_commit is None and making.base_path is not None:
        path = making.base_path
        model = path if path.startswith((".", "/", "~")) else f"./{path}"
        recipe = recipe.model_copy(update={"base": recipe.base.model_copy(update={"model": model})})
    if making.base_commit is None:
        return recipe
    pinned = recipe.base.model_copy(update={"revision": making.base_commit})
    return recipe.model_copy(update={"base": pinned})


def _as_it_was(making: Making, place: Path) -> Recipe | None:
    try:
        recipe = load_recipe(place)
    except UserError:
        return None
    return recipe if recipe_digest(recipe) == making.recipe_digest else None


def _tokens(
    recipe: Recipe, place: Path, base: Base, home: Home, start: Start | None
) -> tuple[Any, str]:
    from tasks.dataset.replay import add_replayed_rows
    from tasks.dataset.work import prepare_dataset
    from tasks.tokenization.work import tokenize_dataset

    store = Store.of(home)
    dataset = prepare_dataset(
        store, recipe.dataset, salt=recipe.split_salt, recipe_folder=place.parent
    )
    share = recipe.training.replay.share
    if share and start is not None:
        dataset = add_replayed_rows(
            store, recipe.dataset.cleaning, dataset=dataset, start=start, share=share
        )
    kind = ROWS[recipe.training.method]
    tokens = tokenize_dataset(store, recipe.tokenization, dataset=dataset, base=base, kind=kind)
    return tokens, dataset.digest


def _trained(
    recipe: Recipe,
    tokens: Any,
    base: Base,
    home: Home,
    hear: Callable[[dict[str, Any]], None],
    start: Start | None,
) -> Adapter:
    from tasks.training.work import train_adapter

    return train_adapter(
        Store(home.store),
        recipe.training,
        seed=recipe.seed,
        tokens=tokens,
        base=base,
        home=home,
        # Rows that it had seen before are no reason not to repeat what was done.
        beginning=Beginning(start, seen="drop"),
        on_event=hear,
    )


def _base_differences(making: Making, base: Base) -> list[str]:
    if making.base_sha256 == base.weights_sha256:
        return []
    return [
        f"base: the weights of {base.shown} had sha256 {making.base_sha256[:12]} and have "
        f"{base.weights_sha256[:12]}"
    ]


def _libraries(making: Making) -> list[str]:
    if not making.training:
        return ["libraries: this version keeps no record of them"]
    lines = []
    for name, then in sorted(making.training.get("versions", {}).items()):
        now = importlib.metadata.version(name)
        if now != then:
            lines.append(f"library: {name} was {then} and is {now}")
    return lines


def _hardware(making: Making, adapter: Adapter) -> list[str]:
    from tasks.training.work import read_result

    result = read_result(adapter).model_dump()
    return [
        f"{what}: was {making.training[what]} and is {result[what]}"
        for what in ("device", "dtype")
        if what in making.training and making.training[what] != result[what]
    ]
