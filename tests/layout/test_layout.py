"""The shape of the house: folders that must not shadow libraries, imports that must stay cheap."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLICES = ["dataset", "tokenization", "training", "evaluation", "registration", "promotion"]


def test_the_folder_mlflow_holds_no_python() -> None:
    """A single module below it would shadow the library in some working directories."""
    assert (ROOT / "mlflow").is_dir()
    assert not list((ROOT / "mlflow").rglob("*.py"))


def test_no_module_of_flows_bears_the_name_of_a_library() -> None:
    """Prefect may put `flows/` first on sys.path."""
    taken = set(sys.stdlib_module_names) | set(packages_distributions())
    # `flows/commands` holds subcommands, which are never on sys.path themselves.
    names = {p.stem for p in (ROOT / "flows").glob("*.py") if p.stem != "__init__"}
    assert not names & (taken - {"flows", "tasks"})


def test_tests_hold_no_packages() -> None:
    """A `tests/tasks/__init__.py` would shadow `tasks`."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_file_is_called_utils() -> None:
    vague = re.compile(r"^(utils?|helpers?|common|manager|misc)$")
    paths = [
        p for top in ("flows", "tasks", "tests", "benchmarks") for p in (ROOT / top).rglob("*")
    ]
    assert not [p for p in paths if vague.match(p.stem)]


@pytest.mark.parametrize("name", SLICES)
def test_every_slice_has_its_settings_work_and_task(name: str) -> None:
    for file in ("settings.py", "work.py", "task.py"):
        assert (ROOT / "tasks" / name / file).is_file(), f"tasks/{name}/{file}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("tasks/**/*.py")), ids=lambda p: str(p.name))
def test_every_module_opens_with_one_sentence(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name != "__init__.py":
        assert text.startswith('"""'), path


def _loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


HEAVY = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "evaluate", "mlflow"}


def test_import_flows_retrain_loads_no_torch() -> None:
    """A Prefect worker and a deploy must not pay for torch, CUDA or MLflow."""
    loaded = _loaded_by("import flows.retrain")
    assert "prefect" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("module", ["flows.cli", "tasks.recipe", "tasks.artifacts", "tasks.launch"])
def test_the_light_modules_stay_light(module: str) -> None:
    assert not _loaded_by(f"import {module}") & (HEAVY | {"prefect", "pandas", "pyarrow", "numpy"})


@pytest.mark.parametrize("module", ["tasks/registration/chat_model.py"])
def test_what_travels_inside_a_version_imports_nothing_of_ours(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    imported = [
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    assert imported
    assert not [name for name in imported if name.split(".")[0] in ("tasks", "flows", "")]


def test_the_readmes_tree_names_the_folders_that_there_are() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Where things are")[2]
    lines = dict(re.findall(r"^([a-z]+)/ +(.+)$", tree, re.M))
    tracked = {
        path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")
    } & {*lines, "deployments", "examples", "flows", "mlflow", "recipes", "tasks", "tests"}
    assert set(lines) == tracked
    kinds = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert set(re.findall(r"[a-z]+", re.sub(r"\(.*?\)", "", lines["tests"]))) == kinds
