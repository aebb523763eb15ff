"""Shipped files are found in the clone and in an installed wheel."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tasks import share


def installed(site: Path) -> ModuleType:
    """`tasks.share` as it would be imported from a wheel at `site`."""
    (site / "tasks").mkdir(parents=True)
    path = Path(shutil.copy(share.__file__, site / "tasks"))
    spec = importlib.util.spec_from_file_location("installed_share", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_clone_has_its_files_at_their_own_places() -> None:
    assert (share.shared("starter") / "config.json").is_file()
    assert (share.shared("recipes") / "quickstart.yaml").is_file()


def test_a_wheel_has_them_inside_the_package(tmp_path: Path) -> None:
    module = installed(tmp_path)
    inside = tmp_path / "tasks" / "shared" / "recipes"
    inside.mkdir(parents=True)
    # Somebody else's folder beside the installed packages.
    (tmp_path / "recipes").mkdir()
    assert module.shared("recipes") == inside


def test_a_broken_installation_names_both_places(tmp_path: Path) -> None:
    module = installed(tmp_path)
    with pytest.raises(FileNotFoundError, match="incomplete") as error:
        module.shared("starter")
    assert str(tmp_path / "tasks" / "shared" / "starter") in str(error.value)
    assert str(tmp_path / "examples" / "starter") in str(error.value)
