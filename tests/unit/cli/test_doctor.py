"""`loraline doctor` finds what is missing and says what to do."""

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from flows import findings, machine
from flows.cli import main
from flows.findings import Finding
from tasks.home import Home, home


@pytest.fixture(autouse=True)
def _no_torch_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch takes seconds; one test below asks the real one."""
    facts = {"version": "2.13.0+cpu", "cuda": None, "devices": 0}
    monkeypatch.setattr("flows.machine.torch_facts", lambda: facts)
    monkeypatch.setattr("flows.machine.gpus", list)


def named(found: list[Finding], name: str) -> Finding:
    return next(finding for finding in found if finding.name == name)


def test_this_machine_can_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["ok"] is True
    names = {finding["name"] for finding in report["findings"]}
    assert {"Python", "packages", "processor", "disk", "GPU", "Prefect", "MLflow"} <= names


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    main(["doctor", "--home", str(tmp_path / "never-used")])
    assert not (tmp_path / "never-used").exists()


@pytest.mark.parametrize(
    ("package", "found", "word"),
    [("fastapi", "0.165.0", "dies at import"), ("sqlalchemy", "2.1.9", "never fire")],
)
def test_a_version_that_breaks_prefect_is_named_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, package: str, found: str, word: str
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        return found if name.lower() == package else real(name)

    monkeypatch.setattr(findings, "version", version)
    finding = named(list(findings.packages()), package)
    assert finding.state == "missing"
    assert found in finding.value
    assert word in finding.value
    assert f"{sys.executable} -m pip install" in finding.advice
    assert "<" in finding.advice


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "sacrebleu":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(findings, "version", version)
    assert named(list(findings.packages()), "sacrebleu").value.startswith("not installed")


def test_a_server_that_does_not_answer_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    assert main(["doctor"]) == 1
    text = capfd.readouterr().out
    assert "✗ Prefect: http://127.0.0.1:9/api, named by PREFECT_API_URL, does not answer" in text
    assert "✗ MLflow" in text
    assert "secret" not in text


def test_a_home_that_cannot_be_written_is_missing(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    finding = findings.state_folder(Home(in_the_way / "home"))
    assert finding.state == "missing"
    assert "LORALINE_HOME" in finding.advice


def test_a_running_embedded_server_is_told_with_its_owner() -> None:
    from flows.server_lock import ServerLock

    state = home()
    lock = ServerLock(state)
    assert lock.acquire("loraline run a.yaml")
    assert f"(process {os.getpid()}" in findings.prefect_server(state).value
    lock.release()
    assert "starts its own" in findings.prefect_server(state).value


@pytest.mark.parametrize(
    ("facts", "cards", "name", "state"),
    [
        ({"version": "2.13.0", "cuda": "13.0", "devices": 1}, 1, "GPU", "ok"),
        ({"version": "2.13.0+cpu", "cuda": None, "devices": 0}, 1, "GPU", "warning"),
        ({"version": "2.13.0+cpu", "cuda": None, "devices": 0}, 0, "GPU", "ok"),
        ({"error": "ImportError: libcudart.so"}, 0, "torch", "missing"),
    ],
)
def test_a_gpu_is_compared_with_what_torch_can_use(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], cards: int, name: str, state: str
) -> None:
    gpu = machine.Gpu("NVIDIA H200", 139.0, "580.1")
    monkeypatch.setattr("flows.machine.torch_facts", lambda: facts)
    monkeypatch.setattr("flows.machine.gpus", lambda: [gpu] * cards)
    finding = named(list(findings.hardware(home())), name)
    assert finding.state == state
    if state != "ok":
        assert finding.advice


def test_nvidia_smi_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 580.65.06'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.gpus() == [machine.Gpu("NVIDIA H200", 143771 / 1024, "580.65.06")]


def test_torch_is_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    facts = machine.torch_facts()
    assert facts["version"].startswith(metadata.version("torch").split("+")[0])
    assert isinstance(facts["devices"], int)


def test_cores_and_memory_are_positive() -> None:
    assert machine.processor().cores >= 1
    memory = machine.memory_gib()
    if memory is not None:
        available, total = memory
        assert 0 < available <= total
