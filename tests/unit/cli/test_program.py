import sys
from pathlib import Path

import pytest

from flows.program import program


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project" / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "loraline").write_text("#!/bin/sh\n")
    (folder / "loraline").chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(folder / "loraline")])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path / "project")
    return folder


def test_a_program_that_the_shell_does_not_find_is_named_by_its_path(bin_folder: Path) -> None:
    assert program() == ".venv/bin/loraline"


def test_from_another_folder_the_path_is_absolute(bin_folder: Path, tmp_path: Path) -> None:
    assert program(tmp_path / "elsewhere") == str(bin_folder / "loraline")


def test_a_program_on_the_path_is_called_by_its_name(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(bin_folder))
    assert program() == "loraline"
