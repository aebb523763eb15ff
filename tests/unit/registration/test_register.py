"""Registration: one version for one adapter, complete or not at all, and nothing of this machine in it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Version
from tasks.errors import StageFailed
from tasks.registration import versions, work
from tasks.registration.listing import list_versions
from tasks.registration.package import requirements
from tasks.registration.settings import RegistrationSettings
from tasks.registration.verification import verify_version
from tasks.registration.work import find_registered, fingerprint_of, git_commit
from tasks.registry import current_champion, model_files, model_id_of

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


def test_requirements_are_exact_and_without_local_parts() -> None:
    lines = requirements()
    assert any(line.startswith("torch==") for line in lines)
    assert all("==" in line and "+" not in line for line in lines)


def test_a_registered_adapter_is_found_again_by_the_next_run(
    trained: Any, registered: Version
) -> None:
    tracker = trained.tracker()
    found = find_registered(trained.store, key_of(trained), tracker)
    assert found is not None
    version, evaluation = found
    assert (version.version, version.uri) == (registered.version, "models:/tiny/1")
    assert evaluation == trained.report.fingerprint
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


def test_an_adapter_whose_reloaded_logits_differ_is_never_a_version(own_trained: Any) -> None:
    from safetensors.torch import load_file, save_file

    fixture = own_trained.adapter.path / "fixture.safetensors"
    save_file({"logits": load_file(fixture)["logits"] + 0.01}, fixture)
    tracker = own_trained.tracker()
    with pytest.raises(StageFailed, match="does not compute what was trained"):
        own_trained.register(tracker)
    assert tracker.client.search_model_versions("name = 'tiny'") == []


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
from tasks.registration.settings import RegistrationSettings
from tasks.registration.work import register_adapter
from tasks.store import Store
from tasks.tracking import Tracker
job = json.loads(Path(sys.argv[1]).read_text())
home = Home(Path(job["home"]))
tracker = Tracker(home)
run = tracker.open_run("tiny", "parallel", tags={}, params={})
version = register_adapter(
    Store(home.store), RegistrationSettings(), tracker=tracker, name="tiny", run_id=run,
    dataset=Dataset(**job["dataset"]), tokens=Tokens(**job["tokens"]),
    adapter=Adapter(**job["adapter"]), report=Report(**job["report"]),
    base=Base(**{**job["base"], "path": Path(job["base"]["path"])}),
    recipe_path=Path(job["recipe"]), recipe_text="name: tiny", recipe_digest="d",
    prefect_flow_run_id=None, home=home,
)
print(version.version)
"""


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
    with pytest.raises(StageFailed, match="missing or damaged"):
        current_champion(tracker, "tiny", own_trained.home)


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
