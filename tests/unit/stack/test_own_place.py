"""A state folder that was moved is refused before a server starts in it; a link in its old place is enough."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from flows.cli import main
from flows.stack import boot
from flows.stack.own_place import refuse_moved
from flows.stack.settings import StackSettings, write_settings
from flows.stack.starting import bring_up
from tasks.errors import UserError
from tasks.home import Home


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Home, StackSettings]:
    """A home that has had a stack, and lies elsewhere now."""
    # A command of a message is pasted as it is.
    home = Home((tmp_path / "a place").resolve())
    settings = StackSettings(project=tmp_path, state_folder=home.root)
    write_settings(home, settings)
    refuse_moved(home, settings)
    return Home(home.root.rename(tmp_path.resolve() / "a later place")), settings


def test_a_moved_folder_is_refused_however_it_is_started(
    moved: tuple[Home, StackSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home, settings = moved
    way_out = f"ln -s {shlex.quote(str(home.root))} {shlex.quote(str(settings.state_folder))}"
    with pytest.raises(UserError, match=re.escape(way_out)):
        bring_up(home, settings, print)
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    assert main(["up", "--foreground", "--existing"]) == boot.NO_RESTART
    assert way_out in capsys.readouterr().err
    with pytest.raises(UserError, match=re.escape(way_out)):
        boot._refuse_unfit(home, settings, {}, "started")
    assert not list(home.root.rglob("*.db"))
    assert settings.state_folder is not None
    settings.state_folder.symlink_to(home.root)
    refuse_moved(home, settings)


def test_a_copy_beside_its_original_is_refused_with_the_original_s_place(
    moved: tuple[Home, StackSettings],
) -> None:
    home, settings = moved
    assert settings.state_folder is not None
    shutil.copytree(home.root, settings.state_folder)
    way_out = f"loraline up --home {shlex.quote(str(settings.state_folder))}`"
    with pytest.raises(UserError, match=re.escape(way_out)):
        refuse_moved(home, settings)


def test_a_place_that_cannot_be_looked_at_is_told_as_such(
    moved: tuple[Home, StackSettings], tmp_path: Path
) -> None:
    # To a user who may see everything only such a name is closed.
    settings = moved[1].model_copy(update={"state_folder": tmp_path / ("x" * 300)})
    with pytest.raises(UserError, match=r"cannot be seen \(.*too long") as told:
        refuse_moved(moved[0], settings)
    assert "ln -s" not in str(told.value)


def test_a_stack_from_before_its_place_was_noted_starts(tmp_path: Path) -> None:
    refuse_moved(Home(tmp_path), StackSettings(project=tmp_path))
