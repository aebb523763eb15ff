"""The whole way through, from the command line, on a pipeline made small."""

import json
import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tasks.gpu_turn import gpu_turn
from tasks.home import Home
from tasks.tracking import Tracker
from tests.registry_page import unnamed_of_run

STAGES = ("dataset", "tokenization", "training", "evaluation", "registration")
METRICS = {
    "loss",
    "perplexity",
    "token_accuracy",
    "exact_match",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "bleu",
    "chrf",
    "stop_rate",
    "mean_length",
    "token_f1",
    "length_ratio",
    "repetition",
    "distinct_1",
    "distinct_2",
}
SHARES = METRICS - {"loss", "perplexity", "mean_length", "length_ratio"}


def test_a_first_run_registers_and_promotes_a_version(first_run: dict[str, Any]) -> None:
    assert first_run["exit_code"] == 0, first_run["stderr"][-3000:]
    assert first_run["outcome"] == "registered"
    assert first_run["model_version"]["name"] == "small"
    assert first_run["model_version"]["uri"] == "models:/small/1"
    assert {"champion", "challenger"} <= set(first_run["model_version"]["aliases"])
    assert [first_run["stages"][s]["reused"] for s in STAGES] == [False] * 5
    assert first_run["prefect_flow_run_id"]
    assert first_run["mlflow_run_id"]
    assert first_run["trainable_parameters"] > 0
    page = Path(first_run["report"])
    assert page.name == "report.html"
    # Written again when the run had ended: it tells what became of the version.
    assert "<h1>✓ Champion now</h1>" in page.read_text(encoding="utf-8")


def test_every_metric_is_there_and_shares_lie_between_0_and_1(first_run: dict[str, Any]) -> None:
    assert first_run["metrics"]["champion"] is None
    for model in ("base", "challenger"):
        assert set(first_run["metrics"][model]) == METRICS
        assert all(0 <= first_run["metrics"][model][m] <= 1 for m in SHARES)
    for difference in first_run["differences"]["base"].values():
        assert difference["low"] <= difference["mean"] <= difference["high"]


def test_every_stage_leaves_a_prefect_artifact(small: Any, first_run: dict[str, Any]) -> None:
    with sqlite3.connect(small.folder / ".loraline" / "prefect" / "prefect.db") as database:
        rows = database.execute(
            "select key, data from artifact where flow_run_id = ?",
            (first_run["prefect_flow_run_id"],),
        ).fetchall()
        if not rows:
            # SQLite may keep ids without dashes.
            rows = database.execute("select key, data from artifact").fetchall()
    texts = {key: str(data) for key, data in rows}
    assert {f"loraline-{stage}" for stage in STAGES} <= set(texts)
    assert "models/small/versions/1" in texts["loraline-registration"]
    assert "adapter" in texts["loraline-evaluation"]
    assert "data:image/png;base64" in texts["loraline-training"]


def test_runs_are_named_alike_after_what_ran_in_both_pages(
    small: Any, first_run: dict[str, Any]
) -> None:
    home = Home(small.folder / ".loraline")
    with sqlite3.connect(home.prefect / "prefect.db") as database:
        names = dict(database.execute("select replace(id, '-', ''), name from flow_run").fetchall())
        tasks = [name for (name,) in database.execute("select name from task_run").fetchall()]
        bar = database.execute(
            "select description, data from artifact where key = 'loraline-training-progress'"
        ).fetchall()
    name = names[first_run["prefect_flow_run_id"].replace("-", "")]
    assert re.fullmatch(r"small v1 · [1-9][\d,]* rows · manual", name)
    client = Tracker(home).client
    assert client.get_run(first_run["mlflow_run_id"]).info.run_name == name
    rows = name.split(" · ")[1]
    assert {
        "prepare dataset",
        f"tokenize dataset: {rows}",
        f"train adapter: {rows}",
        "register adapter of small",
        "decide on small v1 (policy: automatic)",
    } <= set(tasks)
    assert any(re.fullmatch(r"evaluate adapter: \d+ test rows", task) for task in tasks)
    # Of the first run; a later training has one of its own.
    assert len(bar) >= 1
    assert bar[0][0].startswith("step 6 of 6, loss ")
    assert float(bar[0][1]) == 100.0


TASKS = {
    "dataset": "prepare dataset",
    "tokenization": "tokenize dataset",
    "training": "train adapter",
    "evaluation": "evaluate adapter",
    "registration": "register adapter",
    "promotion": "decide on small v1",
}
"""Stage of the README's diagram -> how its task run's name begins."""


def test_the_graph_of_the_flow_run_reads_like_the_diagram_of_the_readme(
    small: Any, first_run: dict[str, Any], standing_server: Any
) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    _, *stages = re.search(r"^sources ─▶ .*$", readme, re.M)[0].split(" ─▶ ")  # type: ignore[index]
    assert [stage.strip() for stage in stages] == list(TASKS)
    server = standing_server(small.folder)
    graph = server.api.ask("GET", f"/flow_runs/{first_run['prefect_flow_run_id']}/graph-v2")
    labels = {identity: node["label"] for identity, node in graph["nodes"]}
    drawn = [label for label in labels.values() if label != "find champion of small"]
    assert len(drawn) == len(TASKS)
    # In the order of the arrows, which are drawn from what a task run was given.
    parents = {
        node["label"]: {labels[it["id"]] for it in node["parents"]} for _, node in graph["nodes"]
    }
    before = None
    for label, begins in zip(drawn, TASKS.values(), strict=True):
        assert label.startswith(begins)
        assert parents[label] == set() if before is None else before in parents[label]
        before = label


def test_the_verdict_links_to_mlflow_and_the_version_links_back(
    small: Any, first_run: dict[str, Any]
) -> None:
    home = Home(small.folder / ".loraline")
    with sqlite3.connect(home.prefect / "prefect.db") as database:
        rows = database.execute(
            "select data from artifact where key = 'loraline-verdict' order by created"
        ).fetchall()
    verdict = json.loads(rows[0][0])
    assert verdict.startswith("# ✓ Registered: small v1 · ")
    assert f"/runs/{first_run['mlflow_run_id']})" in verdict
    assert "/#/models/small/versions/1)" in verdict
    version = Tracker(home).client.get_model_version("small", "1")
    assert first_run["prefect_flow_run_id"] in version.description


def test_the_mlflow_run_is_complete_and_links_back(
    small: Any, first_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(Home(small.folder / ".loraline"))
    client, run_id = tracker.client, first_run["mlflow_run_id"]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["rougeL"] == pytest.approx(first_run["metrics"]["challenger"]["rougeL"])
    assert "base.rougeL" in run.data.metrics
    history = client.get_metric_history(run_id, "train.loss")
    assert [point.step for point in history] == sorted({point.step for point in history})
    assert history[-1].step == 6
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert run.data.params["training.peft_config.r"] == "4"
    assert run.data.tags["loraline.prefect_flow_run_id"] == first_run["prefect_flow_run_id"]
    assert first_run["prefect_flow_run_id"] in run.data.tags["mlflow.note.content"]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "small"
    files = {entry.path for entry in client.list_artifacts(run_id)}
    assert {"recipe", "report", "summaries", "predictions.json"} <= files
    pages = {entry.path for entry in client.list_artifacts(run_id, "report")}
    assert {"report/report.html", "report/report.md"} <= pages
    version = client.get_model_version("small", "1")
    assert version.status == "READY"
    assert version.run_id == run_id
    for tag in ("base_sha256", "dataset_digest", "recipe_digest", "prefect_flow_run_id"):
        assert version.tags[f"loraline.{tag}"]


@pytest.fixture
def gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of a machine with one GPU: who looks for it leaves a line in `looked`, who takes it a lock."""
    programs = tmp_path / "programs"
    programs.mkdir()
    tool = programs / "nvidia-smi"
    tool.write_text(
        f"#!/bin/sh\necho \"$*\" >> '{tmp_path / 'looked'}'\necho '0, GPU-of-this-test'\n"
    )
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LORALINE_GPU_LOCKS": str(tmp_path / "locks"),
    }


def test_a_second_run_reuses_every_stage_and_names_the_same_version(
    small: Any,
    first_run: dict[str, Any],
    gpu_machine: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = small.json("run", "recipes/small.yaml", **gpu_machine)
    assert second["exit_code"] == 0, second["stderr"][-3000:]
    assert second["outcome"] == "skipped"
    assert second["model_version"]["uri"] == first_run["model_version"]["uri"]
    assert second["mlflow_run_id"] == first_run["mlflow_run_id"]
    assert {s: second["stages"][s]["reused"] for s in STAGES} == dict.fromkeys(STAGES, True)
    assert second["metrics"] == first_run["metrics"]
    assert second["reason"].startswith("Nothing has changed since version 1 of small")
    home = Home(small.folder / ".loraline")
    page = Tracker(home).run_url(first_run["mlflow_run_id"])
    assert f" {page} " in second["reason"]
    with sqlite3.connect(home.prefect / "prefect.db") as database:
        ends = database.execute(
            "select s.name, s.message from flow_run f join flow_run_state s on f.state_id = s.id"
        ).fetchall()
    assert ("Skipped", second["reason"]) in ends
    assert not (tmp_path / "looked").exists()
    assert not (tmp_path / "locks").exists()
    # A run that computes something does both.
    for name, value in gpu_machine.items():
        monkeypatch.setenv(name, value)
    with gpu_turn() as taken:
        assert taken == ("GPU-of-this-test",)
    assert (tmp_path / "looked").exists()
    assert list((tmp_path / "locks").iterdir())


def test_a_comment_or_a_schedule_changes_nothing(small: Any, first_run: dict[str, Any]) -> None:
    recipe = small.folder / "recipes" / "small.yaml"
    other = small.folder / "recipes" / "commented.yaml"
    other.write_text("# words\n" + recipe.read_text() + "schedule: {cron: '0 2 * * *'}\n")
    again = small.json("run", "recipes/commented.yaml")
    assert again["outcome"] == "skipped", again["reason"]


@pytest.mark.long
def test_another_gate_evaluates_again_and_trains_nothing(
    small: Any, first_run: dict[str, Any]
) -> None:
    """A bound that no answer reaches: the version stays what it was, exit code 3."""
    gate = "evaluation.gate=[{metric: rougeL, min: 0.999}]"
    refused = small.json("run", "recipes/small.yaml", "--set", gate)
    assert refused["exit_code"] == 3, refused["stderr"][-3000:]
    assert refused["outcome"] == "refused"
    assert refused["gate"]["passed"] is False
    assert "rougeL" in refused["reason"]
    assert refused["stages"]["training"]["reused"] is True
    assert "registration" not in refused["stages"]


@pytest.mark.long
def test_one_command_after_a_forced_run_the_same_adapter_is_still_one_version(
    small: Any, first_run: dict[str, Any]
) -> None:
    forced = small.json("run", "recipes/small.yaml", "--force")
    assert forced["exit_code"] == 0, forced["stderr"][-3000:]
    assert forced["stages"]["training"]["reused"] is False
    assert forced["model_version"]["version"] == "1"
    assert forced["mlflow_run_id"] != first_run["mlflow_run_id"]


def test_split_names_of_the_source_notebooks_are_refused_with_the_right_ones(small: Any) -> None:
    names = "[k_proj, q_proj, v_proj, o_proj, gate_proj, down_proj, up_proj]"
    refused = small.json(
        "run", "recipes/small.yaml", "--set", f"training.peft_config.target_modules={names}"
    )
    assert refused["exit_code"] == 2
    assert refused["outcome"] == "failed"
    for name in ("q_proj", "gate_proj", "qkv_proj", "gate_up_proj"):
        assert name in refused["reason"]
    assert "Traceback" not in refused["stderr"]


@pytest.mark.long
def test_another_adapter_is_compared_with_the_champion_on_the_same_rows(
    small: Any, first_run: dict[str, Any]
) -> None:
    second = small.json("run", "recipes/small.yaml", "--set", "seed=7")
    assert second["exit_code"] == 0, second["stderr"][-3000:]
    assert second["stages"]["dataset"]["reused"] is True
    assert second["model_version"]["version"] == "2"
    assert second["metrics"]["base"] == pytest.approx(first_run["metrics"]["base"])
    assert second["metrics"]["champion"] == pytest.approx(first_run["metrics"]["challenger"])
    assert set(second["differences"]["champion"]) == METRICS
    first = small("versions", "small", "--json")
    assert '"previous"' in first.stdout
    client = Tracker(Home(small.folder / ".loraline")).client
    # With the names of a champion and of its data, which the first run lacks.
    assert unnamed_of_run(client, second["mlflow_run_id"]) == set()
    assert_compared_usefully(client, first_run["mlflow_run_id"], second["mlflow_run_id"])


def assert_compared_usefully(client: Any, *run_ids: str) -> None:
    """On MLflow's page of two runs each row has two values, and what differs is what was changed."""
    first, second = (client.get_run(run_id).data for run_id in run_ids)
    assert set(first.params) == set(second.params)
    assert {it for it in first.params if first.params[it] != second.params[it]} == {"seed"}
    # The first adapter of a name has no champion to be compared with.
    others = ("champion.", "drift.")
    assert not [it for it in first.metrics if it.startswith(others)]
    # A run that takes a training from the store has no machine to tell of.
    common = {it for it in first.metrics if not it.startswith("system/")}
    assert common == {it for it in second.metrics if not it.startswith((*others, "system/"))}
    for prefix in ("base.", "champion."):
        assert {it for it in second.metrics if it.startswith(prefix)} == {
            f"{prefix}{metric}" for metric in METRICS
        }


@pytest.mark.slow
def test_beside_a_champion_on_another_base_a_person_must_decide(
    small: Any, first_run: dict[str, Any], tiny_base: Path
) -> None:
    """Its answers cannot be compared on this base, so no policy promotes over it."""
    random_weights = ["--set", "training.guards.untrained_base=allow"]
    held = small.json("run", "recipes/small.yaml", "--set", f"base={tiny_base}", *random_weights)
    assert held["exit_code"] == 0, held["stderr"][-3000:]
    assert held["outcome"] == "awaiting_approval"
    assert "another base" in held["reason"]
    assert held["metrics"]["champion"] is None
    assert held["model_version"]["aliases"] == ["challenger"]


def test_nothing_is_written_in_the_users_home(small: Any, first_run: dict[str, Any]) -> None:
    home = small.folder / "user-home"
    assert not home.exists() or not [p for p in home.rglob("*") if p.is_file()]
    assert sorted(p.name for p in small.folder.iterdir()) == sorted(
        [".loraline", "recipes", *(["user-home"] if home.exists() else [])]
    )


def test_other_users_of_the_machine_are_kept_out_of_the_databases(
    small: Any, first_run: dict[str, Any]
) -> None:
    """They hold secret blocks with their key, and hashes of passwords."""
    for name in ("prefect", "mlflow"):
        assert (small.folder / ".loraline" / name).stat().st_mode & 0o007 == 0, name


@pytest.mark.long
def test_verify_recomputes_digests_files_and_logits(small: Any, first_run: dict[str, Any]) -> None:
    found = small.json("verify", first_run["model_version"]["uri"])
    assert found["exit_code"] == 0, found["stderr"][-3000:]
    assert [(check["name"], check["passed"]) for check in found["checks"]] == [
        ("files", True),
        ("training rows", True),
        ("train.jsonl", True),
        ("test.jsonl", True),
        ("logits", True),
    ]


@pytest.mark.long
def test_rows_that_the_champion_was_trained_on_are_not_tested_with(
    small: Any, first_run: dict[str, Any]
) -> None:
    assert "champion" in first_run["model_version"]["aliases"]
    found = small.json("run", "recipes/small.yaml", "--set", "dataset.split.salt=another")
    assert found["exit_code"] == 2
    assert found["outcome"] == "failed"
    assert "test rows were training rows of the champion" in found["reason"]
    # Before a GPU is touched.
    assert "training" not in found["stages"]
