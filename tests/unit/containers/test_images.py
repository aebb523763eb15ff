"""The images: linted, not root, pinned, and their build steps run as far as they can without an engine."""

import fnmatch
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

TARGETS = ["server", "worker"]
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|ACCESS_KEY|API_KEY")


def test_hadolint_finds_nothing(files: Any) -> None:
    done = subprocess.run(
        [files.tool("hadolint"), "--failure-threshold", "style", str(files.root / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_user_with_a_fixed_number_and_as_nobody_else(
    files: Any, target: str
) -> None:
    steps = [it for it in files.dockerfile() if it[0] in files.lineage(target)]
    users = [arguments for _, instruction, arguments in steps if instruction == "USER"]
    assert users == ["10001:10001"]
    # What comes later is run or written by that user.
    after = steps[[it[1] for it in steps].index("USER") :]
    assert not {instruction for _, instruction, _ in after} & {"RUN", "COPY", "ADD"}
    assert any("useradd --uid 10001 --gid 10001" in arguments for _, _, arguments in steps)


def test_what_torch_compiles_lies_in_a_volume_and_not_where_nothing_may_be_run(files: Any) -> None:
    """A tmpfs of Docker's is mounted `noexec`, and a library on it cannot be loaded."""
    environment = files.image_environment("worker")
    code = (
        "from torch._inductor.runtime import cache_dir_utils as it; print(it.default_cache_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    by_itself, here = done.stdout.strip(), environment["TORCHINDUCTOR_CACHE_DIR"]
    worker = files.compose()["services"]["worker"]
    assert any(by_itself.startswith(f"{it}/") for it in worker["tmpfs"])
    volumes = [it.partition(":")[2] for it in worker["volumes"] if isinstance(it, str)]
    assert any(here.startswith(f"{it}/") for it in volumes)
    # Triton's own is below the user's home.
    assert environment["HOME"] in volumes
    assert "TRITON_CACHE_DIR" not in environment


def test_no_layer_holds_a_secret(files: Any) -> None:
    for _, instruction, arguments in files.dockerfile():
        assert instruction != "ADD"
        if instruction in ("ENV", "ARG"):
            assert not SECRET.search(arguments), arguments
    assert not any(name in files.text("Dockerfile") for name in (".env", "COPY ."))


def test_what_changes_often_is_copied_after_what_takes_long(files: Any) -> None:
    """A changed line of code must not install torch again."""
    libraries = [it for it in files.dockerfile() if it[0] == "worker-libraries"]
    copied = {
        name for _, it, arguments in libraries if it == "COPY" for name in arguments.split()[:-1]
    }
    assert copied == {"pyproject.toml", "requirements.lock"}
    wheel = [
        arguments for stage, it, arguments in files.dockerfile() if (stage, it) == ("wheel", "COPY")
    ]
    assert wheel[0].startswith("requirements.lock")
    assert wheel[-1] == "flows flows"


def test_the_python_of_the_images_is_the_one_that_the_lock_was_tried_with(files: Any) -> None:
    (default,) = [a for _, it, a in files.dockerfile() if it == "ARG" and a.startswith("PYTHON=")]
    version = default.removeprefix("PYTHON=").partition("-")[0]
    assert version.count(".") == 2
    assert version in SpecifierSet(files.project()["requires-python"])
    assert version.split(".")[:2] == list(platform.python_version_tuple()[:2])


def test_everything_the_worker_image_installs_has_a_version_in_the_lock(
    files: Any, tmp_path: Path
) -> None:
    wanted = _worker_requirements(files, tmp_path)
    pins = files.pins("requirements.lock")
    loose = _closure(wanted) - set(pins)
    # torch's own build brings CUDA's libraries, pinned by its metadata; `venv` brings setuptools.
    assert {it for it in loose if not it.startswith(("nvidia-", "cuda-", "triton"))} <= {
        "setuptools"
    }
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pins[name]), requirement


def test_the_worker_image_has_what_pyproject_asks_for_and_no_test_tool(
    files: Any, tmp_path: Path
) -> None:
    names = {canonicalize_name(it.name) for it in _worker_requirements(files, tmp_path)}
    project = files.project()
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["s3"], *extras["postgresql"]]
    assert {canonicalize_name(Requirement(it).name) for it in asked} < names
    assert "bitsandbytes" in names
    assert not names & {"pytest", "moto", "mypy", "ruff"}


def test_the_server_image_has_the_same_prefect_and_mlflow_and_no_torch(files: Any) -> None:
    lines = [line.partition("#")[0].strip() for line in _plain_lines(files, "server.txt")]
    wanted = [Requirement(line) for line in lines if line]
    shared = files.pins("requirements.lock")
    own = files.pins("deployments/containers/server.lock")
    assert not set(shared) & set(own), "one of the two would win by chance"
    known = {**shared, **own}
    assert {canonicalize_name(it.name) for it in wanted} <= set(known)
    # Those of `own` may be absent here: what they need was frozen with them.
    installed = [it for it in wanted if canonicalize_name(it.name) in shared]
    closure = _closure(installed)
    assert closure <= set(known) | {"setuptools"}
    assert {"prefect", "mlflow", "asyncpg", "fastapi", "sqlalchemy"} <= closure
    assert not closure & {"torch", "transformers", "peft", "trl"}
    (install,) = [
        a
        for stage, it, a in files.dockerfile()
        if stage == "server-libraries" and "pip install" in a
    ]
    assert "--constraint requirements.lock --constraint server.lock" in install


def test_what_runs_in_the_server_image_imports_only_what_is_in_it(files: Any) -> None:
    code = (
        "import sys, json, flows.stack.migrating, flows.stack.postgres, tasks.advisory_lock, tasks.outage, tasks.tracking\n"
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules} - sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=files.root,
    )
    top = metadata.packages_distributions()
    loaded = {canonicalize_name(it) for name in json.loads(done.stdout) for it in top.get(name, [])}
    lines = [line.partition("#")[0].strip() for line in _plain_lines(files, "server.txt")]
    installed = [Requirement(line) for line in lines if line]
    there = _closure(
        [it for it in installed if canonicalize_name(it.name) in files.pins("requirements.lock")]
    )
    assert loaded - there <= {"loraline", "setuptools", "distutils-precedence"}


def test_the_wheel_is_built_from_what_the_build_copies(files: Any, tmp_path: Path) -> None:
    """The steps of the stage `wheel`, in a folder that has only what `.dockerignore` lets pass."""
    source = tmp_path / "source"
    source.mkdir()
    for stage, instruction, arguments in files.dockerfile():
        if (stage, instruction) == ("wheel", "COPY"):
            *names, target = arguments.split()
            for name in names:
                place = source / target / ("" if target != "./" else name)
                assert _passes(files, name), f".dockerignore keeps {name} out"
                if (files.root / name).is_dir():
                    ignore = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(files.root / name, source / target, ignore=ignore)
                else:
                    shutil.copy(files.root / name, place)
    (build,) = [a for stage, it, a in files.dockerfile() if stage == "wheel" and "pip wheel" in a]
    command = shlex.split(build.replace("/dist", str(tmp_path / "dist")))
    done = subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, cwd=source, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,) = (tmp_path / "dist").glob("loraline-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"flows/cli.py", "flows/watchdog.py", "tasks/recipe.py"} <= names
    for shared in (
        "deployments/prefect.yaml",
        "recipes/quickstart.yaml",
        "deployments/containers/worker.conf",
    ):
        assert f"tasks/shared/{shared}" in names
    version = files.project()["version"]
    assert wheel.name.startswith(f"loraline-{version}-")


def test_state_history_and_secrets_stay_out_of_the_build(files: Any) -> None:
    for name in (
        ".env",
        ".git",
        ".venv",
        ".loraline",
        "shared",
        "deployments/.env",
        "recipes/.env.local",
    ):
        assert not _passes(files, name), name


def test_files_that_the_images_copy_are_there(files: Any) -> None:
    for _, instruction, arguments in files.dockerfile():
        if instruction == "COPY" and not arguments.startswith("--from"):
            for name in arguments.split()[:-1]:
                assert (files.root / name).exists(), name
                assert _passes(files, name), name


def _plain_lines(files: Any, name: str) -> list[str]:
    return list(files.text(f"deployments/containers/{name}").splitlines())


def _worker_requirements(files: Any, tmp_path: Path) -> list[Requirement]:
    """What the build writes into `wanted.txt`: its own line of Python is run."""
    (step,) = [
        a
        for stage, it, a in files.dockerfile()
        if stage == "worker-libraries" and "wanted.txt" in a
    ]
    code = shlex.split(step[step.index("python -c") :])[2]
    shutil.copy(files.root / "pyproject.toml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "--constraint requirements.lock --requirement wanted.txt" in step
    return [Requirement(line) for line in done.stdout.splitlines()]


def _closure(wanted: list[Requirement]) -> set[str]:
    """All distributions that these need, as those that are installed here say."""
    todo = [(canonicalize_name(it.name), frozenset(it.extras)) for it in wanted if _applies(it, "")]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if any(_applies(requirement, extra) for extra in (*extras, "")):
                new = (canonicalize_name(requirement.name), frozenset(requirement.extras))
                if new not in seen:
                    seen.add(new)
                    todo.append(new)
    return {name for name, _ in seen}


def _applies(requirement: Requirement, extra: str) -> bool:
    environment = {**{k: str(v) for k, v in default_environment().items()}, "extra": extra}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _passes(files: Any, name: str) -> bool:
    """Whether `.dockerignore` lets a path into the build: the last pattern that fits it decides."""
    passes = True
    for line in files.text(".dockerignore").splitlines():
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            fits = any(fnmatch.fnmatch(part, pattern[3:]) for part in name.split("/"))
        else:
            fits = fnmatch.fnmatch(name.split("/")[0], pattern) or f"{name}/".startswith(
                f"{pattern}/"
            )
        if line.strip() and fits:
            passes = line.startswith("!")
    return passes
