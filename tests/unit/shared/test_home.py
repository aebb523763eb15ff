"""The state folder: who may read it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.home import Home


def others(folder: Path) -> int:
    return folder.stat().st_mode & 0o007


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    found = Home(tmp_path / "state")
    for name, value in found.environment().items():
        # Set first, so that what `prepare` sets is taken back.
        monkeypatch.setenv(name, value)
    usual = os.umask(0o022)
    yield found
    os.umask(usual)


@pytest.mark.parametrize("before", [0o755, 0o777])
def test_other_users_of_the_machine_are_kept_out_of_databases_that_were_open_to_them(
    state: Home, before: int
) -> None:
    for folder in (state.prefect, state.mlflow):
        folder.mkdir(parents=True)
        folder.chmod(before)
    state.prepare()
    for folder in (state.prefect, state.mlflow):
        assert others(folder) == 0
        assert folder.stat().st_mode & 0o700 == 0o700
    # What a run made may be shown to others.
    assert others(state.root) == others(state.logs) != 0


def test_a_group_that_shares_the_folder_goes_on_to(state: Home) -> None:
    state.prefect.mkdir(parents=True)
    state.prefect.chmod(0o2775)
    state.prepare()
    assert state.prefect.stat().st_mode & 0o7777 == 0o2770
