"""Registration: one version for one adapter, complete or not at all, and nothing of this machine in it."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Version
from tasks.base import BaseSettings, resolve_base
from tasks.errors import StageFailed
from tasks.files import hashes
from tasks.home import Home
from tasks.registration import versions, work
from tasks.registration.listing import list_versions
from tasks.registration.package import Contents, recorded_path, requirements
from tasks.registration.proving import prove_version
from tasks.registration.settings import RegistrationSettings
from tasks.registration.verification import verify_version
from tasks.registration.work import find_registered, fingerprint_of, git_commit
from tasks.registry import current_champion, model_files, model_id_of
from tasks.version_manifest import check_files

ROOT = Path(__file__).resolve().parents[3]


def key_of(trained: Any) -> str:
    return fingerprint_of(
        RegistrationSettings(),
        name="tiny",
        adapter_fingerprint=trained.adapter.fingerprint,
        evaluation_fingerprint=trained.report.fingerprint,
        tracking_uri=trained.tracker().uri,
    )


def test_the_same_adapter_registered_twice_gives_one_version(
    trained: Any, registered: Version
) -> None:
    tracker = trained.tracker()
    again = trained.register(tracker)
    assert again.version == registered.version == "1"
    assert again.mlflow_run_id == registered.mlflow_run_id
    assert [entry.version for entry in list_versions(tracker, "tiny")] == ["1"]
    assert "challenger" in again.aliases


@pytest.mark.long
def test_the_reloaded_version_s_logits_equal_the_trained_adapter_s_in_a_fresh_process(
    trained: Any, registered: Version
) -> None:
    found = verify_version(
        trained.tracker(),
        registered.uri,
        base=trained.base.path,
        fixture=trained.adapter.path,
        home=trained.home,
    )
    assert found.dtype == "float32"
    assert found.largest_difference <= 1e-4 <= found.tolerance
    # The comparison could tell the adapter from its base.
    assert found.adapter_effect > 100 * found.tolerance
    assert found.rows == 2
    assert found.positions == 8


def test_a_version_holds_the_adapter_and_neither_the_base_nor_a_path_of_this_machine(
    trained: Any, registered: Version
) -> None:
    tracker = trained.tracker()
    version = tracker.client.get_model_version("tiny", registered.version)
    with model_files(tracker, model_id_of(version), trained.home) as folder:
        files = [path for path in folder.rglob("*") if path.is_file()]
        names = {path.relative_to(folder).as_posix() for path in files}
        environment = (folder / "artifacts" / "about" / "environment.lock").read_text()
        for path in files:
            content = path.read_bytes()
            for place in (trained.project, ROOT, Path(sys.prefix)):
                assert str(place).encode() not in content, path
    weights = {name for name in names if name.endswith((".safetensors", ".bin", ".pt"))}
    assert weights == {
        "artifacts/adapter/adapter_model.safetensors",
        "artifacts/fixture/fixture.safetensors",
    }
    assert {"MLmodel", "input_example.json", "artifacts/manifest.json"} <= names
    assert {"artifacts/about/recipe.yaml", "artifacts/about/report.md"} <= names
    # Not only what loading needs: also what trained it.
    for name in ("torch", "peft", "trl", "loraline"):
        assert f"\n{name}=={importlib.metadata.version(name)}\n" in environment


ASK = """
import json, mlflow
model = mlflow.pyfunc.load_model("models:/tiny/1")
print(json.dumps(model.predict({"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2})))
"""


@pytest.mark.long
@pytest.mark.usefixtures("unverified")
def test_a_version_on_a_base_with_an_absolute_path_answers_wherever_a_process_starts(
    own_trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # Outside the project, as a scheduled run has it.
    monkeypatch.chdir(elsewhere)
    base = Path(shutil.move(own_trained.base.path, tmp_path / "models" / "tiny"))
    base = resolve_base(BaseSettings(model=str(base)), own_trained.recipe, own_trained.home)
    assert base.weights_sha256 == own_trained.base.weights_sha256
    tracker = own_trained.tracker()
    own_trained.register(tracker, base=base)
    version = tracker.client.get_model_version("tiny", "1")
    with model_files(tracker, model_id_of(version), own_trained.home) as folder:
        recorded = (folder / "MLmodel").read_text()
    assert "base_path: ../../models/tiny\n" in recorded
    assert "recipe: recipes/tiny.yaml\n" in recorded
    assert str(tmp_path) not in recorded
    answer = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=elsewhere,
        env={
            **os.environ,
            **own_trained.home.environment(),
            "MLFLOW_TRACKING_URI": tracker.uri,
            "PYTHONPATH": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1])["choices"][0]["finish_reason"]


def test_the_recipe_is_recorded_from_the_nearest_folder_that_a_version_lies_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    recipe = project / "recipes" / "a.yaml"
    recipe.parent.mkdir(parents=True)
    monkeypatch.chdir(project)
    assert recorded_path(recipe, Home(tmp_path / ".loraline")) == "recipes/a.yaml"
    assert recorded_path(Path("recipes/a.yaml"), Home(tmp_path / "x" / "y")) == "recipes/a.yaml"
    monkeypatch.chdir(recipe.parent)
    assert recorded_path(recipe, Home(project / ".loraline")) == "a.yaml"
    monkeypatch.chdir("/")
    assert recorded_path(recipe, Home(project / ".loraline")) == "recipes/a.yaml"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert recorded_path(recipe, Home(project / ".loraline")) == "recipes/a.yaml"
    assert recorded_path(recipe, Home(tmp_path / "x" / "y")) == "a.yaml"


def test_a_version_says_where_it_comes_from(trained: Any, registered: Version) -> None:
    version = trained.tracker().client.get_model_version("tiny", registered.version)
    tags = version.tags
    assert tags["loraline.base_model"] == "../base"
    assert tags["loraline.base_sha256"] == trained.base.weights_sha256
    assert tags["loraline.adapter_sha256"] == trained.adapter.sha256
    assert tags["loraline.dataset_digest"] == trained.dataset.digest
    assert tags["loraline.recipe_digest"] == "d" * 64
    assert tags["loraline.prefect_flow_run_id"] == "flow-1"
    assert tags["loraline.gate"] == "passed"
    assert "loraline.base_commit" not in tags
    assert "| rougeL | 0.100 | 0.400 | +0.300 (+0.200 to +0.400) |" in version.description
    assert "models:/tiny@champion" in version.description
    # A list of versions shows the first line alone, as plain text.
    first = version.description.splitlines()[0]
    assert first.startswith("LoRA adapter tiny: ")
    assert " conversations" in first
    model = trained.tracker().client.get_registered_model("tiny").description
    assert "models:/tiny@champion" in model
    assert "tiny/promotions" in model


def test_requirements_are_exact_and_without_local_parts(trained: Any, tmp_path: Path) -> None:
    lines = requirements(Contents(tmp_path, "f", trained.base, {}))
    assert any(line.startswith("torch==") for line in lines)
    assert all("==" in line and "+" not in line for line in lines)
    assert not any(line.startswith("bitsandbytes") for line in lines)


@pytest.mark.parametrize(
    ("fixture", "stored"),
    [
        ({"quantization": "nf4"}, None),
        ({"quantization": "int8"}, None),
        ({"quantization": "none"}, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ({}, {"load_in_8bit": True}),
    ],
)
def test_a_version_on_a_quantized_base_requires_what_loads_it(
    trained: Any, tmp_path: Path, fixture: dict[str, Any], stored: dict[str, Any] | None
) -> None:
    config = json.loads((trained.base.path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    base = replace(trained.base, path=tmp_path)
    lines = requirements(Contents(tmp_path, "f", base, fixture))
    assert f"bitsandbytes=={installed('bitsandbytes').partition('+')[0]}" in lines


def test_a_version_takes_at_most_20_mb_more_than_its_adapter(
    trained: Any, registered: Version
) -> None:
    tracker = trained.tracker()
    version = tracker.client.get_model_version("tiny", registered.version)
    with model_files(tracker, model_id_of(version), trained.home) as folder:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    adapter = (trained.adapter.folder / "adapter_model.safetensors").stat().st_size
    assert adapter < size <= adapter + 20_000_000


def test_the_registry_names_the_files_of_a_version(trained: Any, registered: Version) -> None:
    tracker = trained.tracker()
    version = tracker.client.get_model_version("tiny", registered.version)
    with model_files(tracker, model_id_of(version), trained.home) as folder:
        found = check_files(folder, version.tags)
    assert (found.wrong, found.whole) == ((), True)
    assert len(version.tags["loraline.files_sha256"]) == 64
    assert set(found.adapter) == set(hashes(trained.adapter.folder)) - {"README.md"}


def test_a_registered_adapter_is_found_again_by_the_next_run(
    trained: Any, registered: Version
) -> None:
    tracker = trained.tracker()
    found = find_registered(trained.store, key_of(trained), tracker)
    assert found is not None
    assert (found.version.version, found.version.uri) == (registered.version, "models:/tiny/1")
    assert found.evaluation == trained.report.fingerprint
    assert not found.was_promoted
    assert find_registered(trained.store, "0" * 64, tracker) is None


def test_the_registration_s_fingerprint_does_not_ask_how_this_home_s_registry_is_reached() -> None:
    def key(uri: str) -> str:
        return fingerprint_of(
            RegistrationSettings(),
            name="a",
            adapter_fingerprint="1",
            evaluation_fingerprint="2",
            tracking_uri=uri,
        )

    assert key("sqlite:////a/mlflow.db") == key("http://127.0.0.1:5000")
    assert key("sqlite:////a/mlflow.db") != key("https://mlflow.example.org")
    assert key("https://u:p@mlflow.example.org") == key("https://mlflow.example.org")


@pytest.mark.usefixtures("unverified")
def test_another_adapter_is_another_version_and_the_new_challenger(
    own_trained: Any, another_adapter: Callable[[Any, int], Any]
) -> None:
    tracker = own_trained.tracker()
    first = own_trained.register(tracker)
    other = another_adapter(own_trained, 2).register(tracker)
    assert (first.version, other.version) == ("1", "2")
    assert other.aliases == ["challenger"]
    assert tracker.client.get_model_version("tiny", "1").aliases == []

    # A version that somebody deleted is registered again, although the record is still there.
    assert find_registered(own_trained.store, key_of(own_trained), tracker) is not None
    tracker.client.delete_model_version("tiny", "1")
    assert find_registered(own_trained.store, key_of(own_trained), tracker) is None
    assert own_trained.register(tracker).version == "3"


@pytest.mark.long
def test_an_adapter_whose_reloaded_logits_differ_is_never_a_version(own_trained: Any) -> None:
    from safetensors.torch import load_file, save_file

    fixture = own_trained.adapter.path / "fixture.safetensors"
    save_file({"logits": load_file(fixture)["logits"] + 0.01}, fixture)
    tracker = own_trained.tracker()
    with pytest.raises(StageFailed, match="does not compute what was trained"):
        own_trained.register(tracker)
    assert tracker.client.search_model_versions("name = 'tiny'") == []
    assert list(own_trained.home.work.iterdir()) == []


@pytest.mark.long
def test_what_a_gpu_trained_is_proved_on_a_cpu_although_that_rounds_otherwise(
    own_trained: Any,
) -> None:
    from safetensors.torch import load_file, save_file

    fixture = own_trained.adapter.path / "fixture.safetensors"
    save_file({"logits": load_file(fixture)["logits"] + 0.01}, fixture)
    (own_trained.adapter.path / "result.json").write_text(json.dumps({"device": "NVIDIA H200"}))
    tracker = own_trained.tracker()
    version = own_trained.register(tracker)
    assert "logits differ by at most 0.01 from" in version.proof
    # As a promotion has it, from the version's own papers.
    proof = prove_version(tracker, version.uri, base=own_trained.base.path)
    assert "computed on another kind of device" in proof


@pytest.mark.long
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_whose_logits_are_no_numbers_is_never_a_version(
    own_trained: Any, value: float
) -> None:
    from safetensors.torch import load_file, save_file

    weights = own_trained.adapter.folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in sorted(tensors) if "lora_B" in name)
    tensors[name][0] = value
    save_file(tensors, weights, metadata={"format": "pt"})
    tracker = own_trained.tracker()
    with pytest.raises(StageFailed, match=r"logits of models:/m-\w+ are NaN or infinite.* Log: "):
        own_trained.register(tracker)
    assert tracker.client.search_model_versions("name = 'tiny'") == []
    assert list(own_trained.home.work.iterdir()) == []


@pytest.mark.long
def test_a_fixture_that_holds_no_numbers_proves_nothing(
    own_trained: Any, registered: Version, trained: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    fixture = own_trained.adapter.path / "fixture.safetensors"
    logits = load_file(fixture)["logits"]
    logits[1, 0, 0] = float("nan")
    save_file({"logits": logits}, fixture)
    with pytest.raises(StageFailed, match=r"1 of \d+ logits of the trained adapter .*row 2 of 2"):
        verify_version(
            trained.tracker(),
            registered.uri,
            base=trained.base.path,
            fixture=fixture.parent,
            home=trained.home,
        )


def test_metrics_of_the_run_are_the_model_s_too_and_stay_one_point(own_trained: Any) -> None:
    tracker = own_trained.tracker()
    run_id = own_trained.open_run(tracker)
    client = tracker.client
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, name="adapter")
    values = {"rougeL": 0.4, "loss": 1.6}
    tracker.log_metrics(run_id, {"rougeL": 0.4})
    work._link_metrics(client, run_id, model, values)
    linked = client.get_logged_model(model.model_id).metrics
    assert {metric.key: metric.value for metric in linked} == values
    assert client.get_run(run_id).data.metrics == values
    assert len(client.get_metric_history(run_id, "rougeL")) == 1


def test_a_damaged_upload_is_never_a_version(
    own_trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = own_trained.tracker()
    upload = tracker.client.log_model_artifacts

    def lossy(model_id: str, local_dir: str) -> None:
        upload(model_id, local_dir)
        with model_files(tracker, model_id, own_trained.home) as folder:
            weights = folder / "artifacts" / "adapter" / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")

    monkeypatch.setattr(tracker.client, "log_model_artifacts", lossy)
    with pytest.raises(StageFailed, match="did not reach MLflow's artifact store intact"):
        own_trained.register(tracker)
    assert tracker.client.search_model_versions("name = 'tiny'") == []


@pytest.mark.usefixtures("unverified")
def test_a_registration_that_died_before_the_version_is_repeated_without_a_trace(
    own_trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = own_trained.tracker()
    with monkeypatch.context() as patch:
        patch.setattr(work, "create_version", lambda *_, **__: (_ for _ in ()).throw(OSError()))
        with pytest.raises(OSError):  # noqa: PT011
            own_trained.register(tracker)
    assert tracker.client.search_model_versions("name = 'tiny'") == []
    assert own_trained.register(tracker).version == "1"
    assert list(own_trained.home.work.iterdir()) == []


@pytest.mark.usefixtures("unverified")
def test_the_second_copy_of_a_version_is_withdrawn_where_workers_share_no_lock(
    own_trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = own_trained.tracker()
    first = own_trained.register(tracker)
    # The other machine looked before the first version was there.
    monkeypatch.setattr(work, "find_by_fingerprint", lambda *_: None)
    assert own_trained.register(tracker).version == first.version
    assert [e.version for e in list_versions(tracker, "tiny")] == ["1"]


REGISTER = """
import json, sys
from pathlib import Path
from tasks.artifacts import Adapter, Dataset, Report, Tokens
from tasks.base import Base
from tasks.home import Home
from tasks.registration.provenance import Provenance
from tasks.registration.settings import RegistrationSettings
from tasks.registration.work import register_adapter
from tasks.store import Store
from tasks.tracking import Tracker
job = json.loads(Path(sys.argv[1]).read_text())
home = Home(Path(job["home"]))
tracker = Tracker(home)
run = tracker.open_run("tiny", "parallel", tags={}, params={})
version = register_adapter(
    Store(home.store), RegistrationSettings(), tracker=tracker, name="tiny", made=Provenance(
    dataset=Dataset(**job["dataset"]), tokens=Tokens(**job["tokens"]),
    adapter=Adapter(**job["adapter"]), report=Report(**job["report"]),
    base=Base(**{**job["base"], "path": Path(job["base"]["path"])}),
    recipe_path=Path(job["recipe"]), recipe_text="name: tiny", recipe_digest="d",
    run_id=run, prefect_flow_run_id=None),
)
print(version.version)
"""


@pytest.mark.long
def test_four_processes_that_register_the_same_adapter_make_one_version(
    own_trained: Any, tmp_path: Path
) -> None:
    base = own_trained.base
    job = tmp_path / "job.json"
    job.write_text(
        json.dumps(
            {
                "home": str(own_trained.home.root),
                "recipe": str(own_trained.recipe),
                "base": {**base.__dict__, "path": str(base.path)},
                **{
                    name: getattr(own_trained, name).model_dump(mode="json")
                    for name in ("dataset", "tokens", "adapter", "report")
                },
            }
        )
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER, str(job)],
            cwd=ROOT,
            env={**os.environ, **own_trained.home.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = [process.communicate(timeout=300) for process in processes]
    assert [out.strip() for out, _ in results] == ["1"] * 4, results
    assert [e.version for e in list_versions(own_trained.tracker(), "tiny")] == ["1"]


@pytest.mark.usefixtures("unverified")
def test_the_champion_comes_with_its_adapter_and_a_damaged_one_is_an_error(
    own_trained: Any,
) -> None:
    tracker = own_trained.tracker()
    assert current_champion(tracker, "tiny", own_trained.home) is None
    version = own_trained.register(tracker)
    assert current_champion(tracker, "tiny", own_trained.home) is None
    tracker.client.set_registered_model_alias("tiny", "champion", version.version)
    champion = current_champion(tracker, "tiny", own_trained.home)
    assert champion is not None
    assert champion.version == version.version
    assert champion.adapter_sha256 == own_trained.adapter.sha256
    assert champion.base_sha256 == own_trained.base.weights_sha256
    weights = champion.folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StageFailed, match=r"adapter_model\.safetensors was changed"):
        current_champion(tracker, "tiny", own_trained.home)
    model = model_id_of(tracker.client.get_model_version_by_alias("tiny", "champion"))
    tracker.client.delete_logged_model(model)
    with pytest.raises(StageFailed, match=r"somebody deleted the logged model.* move the alias"):
        current_champion(tracker, "tiny", own_trained.home)
    with (
        pytest.raises(StageFailed, match="says how it comes back"),
        model_files(tracker, model, own_trained.home),
    ):
        pass


def test_the_commit_of_the_recipe_s_repository_is_known_and_says_when_it_is_dirty(
    tmp_path: Path,
) -> None:
    assert git_commit(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "a.yaml").write_text("a: 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    commit = git("rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "a.yaml").write_text("a: 2\n")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_versions_module_restores_the_environment() -> None:
    before = os.environ.get("MLFLOW_TRACKING_URI")
    with versions._as_default("sqlite:////x.db"):
        assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:////x.db"
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
