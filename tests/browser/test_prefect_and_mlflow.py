"""What a team does in the two pages: starts and watches runs, pauses a schedule, approves, promotes.

Each story takes pictures, into the folder that LORALINE_SCREENSHOTS names; those of the README are made so.
"""

import json
import time

import pytest

from tests.browser.conftest import TRAINING, WatchedStack
from tests.browser.mlflow_pages import MlflowPages
from tests.browser.prefect_pages import PrefectPages
from tests.running_stack import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
STAGES = ("verdict", "dataset", "tokenization", "training", "evaluation", "registration")


def test_a_run_is_started_in_the_form_watched_and_read(
    stack: WatchedStack, prefect: PrefectPages
) -> None:
    page = prefect.page
    prefect.open_deployments()
    page.picture("prefect-deployments")
    prefect.open_deployment("retrain")
    prefect.open_form()
    prefect.fill("recipe", "recipes/docstrings.yaml")
    prefect.add_item("overrides", "training.training_config.learning_rate=0.003")
    prefect.fill("reason", "more of asyncio is documented")
    page.picture("prefect-form")
    prefect.submit()

    run = stack.run_because("more of asyncio is documented")
    prefect.open_run(run)
    prefect.state("Running")
    page.rest()
    stack.reached(run, "step 6 of 6")
    prefect.open_run(run)
    page.wait_for("step 6 of 6")
    page.picture("prefect-training")
    page.rest()
    stack.end_of(run)
    prefect.open_run(run)
    prefect.state("Completed")
    given = stack.api.ask("GET", f"/flow_runs/{run}")["parameters"]
    assert given["overrides"] == ["training.training_config.learning_rate=0.003"]

    prefect.open_tab("Artifacts")
    page.wait_for("loraline-verdict")
    page.picture("prefect-run")
    artifacts = prefect.artifacts(*(f"loraline-{stage}" for stage in STAGES))
    # The graph is drawn on a canvas: each finished task is a bar of the colour of success.
    graph = page.find("//canvas")
    green = sum(n for n, (r, g, b) in page.colours(graph) if g > 120 and r < 80 and b < 140)
    assert green > 500
    prefect.open_tab("Task Runs")
    page.wait_for("prepare dataset", "tokenize dataset", "train adapter", "evaluate adapter")
    page.wait_for("register adapter of docstrings", "decide on docstrings v1")

    for stage, told in {
        "verdict": ("Registered: docstrings v1", "loss: drop against the champion at most 5"),
        "dataset": ("rows to train on and", "asyncio", "left out"),
        "training": ("6 optimizer steps", "Trained parameters", "Settings"),
        "evaluation": ("rougeL", "95 % interval", "loss: drop against the champion at most 5"),
        "registration": ("docstrings, version 1", "Gate: passed", "models:/docstrings@champion"),
    }.items():
        page.open(artifacts[f"loraline-{stage}"])
        page.wait_for(*told)
        page.picture(f"prefect-artifact-{stage}")
        if stage == "training":
            curve = page.find("//article//img")
            # Drawn, and not the sign of a picture that is missing.
            assert curve.get_property("naturalWidth") > 300
    # From the run to its version and its MLflow run, and from there back.
    there = page.links(stack.mlflow_url)
    page.open(there["Version in MLflow"])
    page.wait_for("Version 1", "Source Run", "docstrings")
    page.open(there["MLflow run"])
    page.wait_for("About this run", "Flow run in Prefect")
    assert page.links(stack.prefect_url)["Flow run in Prefect"].endswith(run)


def test_a_schedule_is_paused_with_its_switch_and_stays_paused(
    stack: WatchedStack, prefect: PrefectPages
) -> None:
    def paused() -> dict[str, bool]:
        rows = stack.cli.json("schedules")["schedules"]
        return {row["name"]: row["paused"] for row in rows}

    assert paused() == {"docstrings": False, "reviewed": False}
    prefect.open_deployment("retrain")
    # One for each recipe with a schedule, and none for the third.
    assert prefect.is_on("docstrings")
    assert prefect.is_on("reviewed")
    assert "strict" not in prefect.page.text
    prefect.page.click(prefect.switch("reviewed"))
    prefect.page.until(lambda: not prefect.is_on("reviewed"))
    prefect.page.picture("prefect-schedules")
    until(lambda: paused() == {"docstrings": False, "reviewed": True}, 30)

    deployed = stack.cli.json("deploy")
    assert (deployed["changed"], deployed["problems"]) == ([], [])
    assert paused() == {"docstrings": False, "reviewed": True}
    prefect.open_deployment("retrain")
    assert prefect.is_on("docstrings")
    assert not prefect.is_on("reviewed")


def test_a_person_approves_beside_the_verdict_and_is_remembered(
    stack: WatchedStack, prefect: PrefectPages, mlflow: MlflowPages
) -> None:
    page = prefect.page
    assert stack.retrain("reviewed")["name"] == "Completed"
    client = stack.tracker.client
    assert "champion" not in client.get_registered_model("reviewed").aliases
    form = stack.waiting_form("reviewed")
    prefect.open_run(form)
    prefect.state("Suspended")
    page.press("Resume")
    page.wait_for("Promote version 1 of reviewed?", "loss: drop against the champion at most 5")
    prefect.choose("Decision", "promote")
    prefect.fill("Reason", "the answers read well")
    prefect.fill("Name", "Ada")
    page.picture("approval-form")
    page.press("Submit")

    page.rest()
    stack.end_of(form)
    prefect.open_run(form)
    prefect.state("Promoted")
    page.picture("approval-promoted")
    assert client.get_registered_model("reviewed").aliases["champion"] == "1"
    (entry,) = stack.audit("reviewed")
    assert (entry["champion_to"], entry["actor"]) == ("1", "Ada")
    assert entry["reason"] == "the answers read well"
    mlflow.open_version("reviewed", "1")
    page.wait_for("@ champion", "loraline.promoted_by", "Ada", "the answers read well")
    kept = json.loads(client.get_model_version("reviewed", "1").tags["loraline.approval"])
    assert (kept["outcome"], kept["by"], kept["flow_run"]) == ("approved", "Ada", form)


def test_an_alias_set_in_mlflow_is_found_and_stands_in_the_log(
    stack: WatchedStack, prefect: PrefectPages, mlflow: MlflowPages
) -> None:
    page = mlflow.page
    client = stack.tracker.client
    for number, rate in ((1, "0.003"), (2, "0.004")):
        if len(client.search_model_versions("name = 'docstrings'")) >= number:
            continue
        ended = stack.retrain("docstrings", f"training.training_config.learning_rate={rate}")
        assert ended["name"] == "Completed", ended
    assert client.get_registered_model("docstrings").aliases["champion"] == "2"
    mlflow.open_model("docstrings")
    page.wait_for("Version 2", "@ champion", "@ previous")
    page.picture("mlflow-model")

    mlflow.open_version("docstrings", "1")
    page.wait_for("@ previous", "LoRA adapter docstrings", "Gate: passed", "rougeL")
    page.picture("mlflow-version")
    mlflow.set_alias("champion")
    page.wait_for("@ champion")
    assert client.get_registered_model("docstrings").aliases["champion"] == "1"

    prefect.open_deployment("reconcile-registry")
    prefect.quick_run()
    until(lambda: len(stack.promotions("docstrings")) == 3, TRAINING)
    assert [entry["kind"] for entry in stack.audit("docstrings")][-1] == "observed"
    newest = stack.promotions("docstrings")[0]
    mlflow.open_runs(newest.info.experiment_id)
    page.wait_for("#1 promotion: version 1", "#3 observed: version 1 instead of 2")
    page.picture("mlflow-promotions")
    mlflow.open_run(newest)
    page.wait_for("#3 observed: version 1 instead of 2", "instead_of", "verified")
    page.picture("mlflow-promotion")


def test_a_refusal_is_seen_with_the_table_of_its_rules(
    stack: WatchedStack, prefect: PrefectPages
) -> None:
    page = prefect.page
    prefect.open_deployment("retrain")
    prefect.open_form()
    prefect.fill("recipe", "recipes/strict.yaml")
    prefect.fill("reason", "to be refused")
    prefect.submit()
    page.rest()
    run = stack.run_because("to be refused")
    stack.end_of(run)
    prefect.open_run(run)
    prefect.state("Refused")
    artifacts = prefect.artifacts("loraline-evaluation")
    page.picture("prefect-refused")
    assert "loraline-registration" not in artifacts
    page.open(artifacts["loraline-evaluation"])
    page.wait_for("The gate refuses it", "stop_rate", "at least 0.99", "failed")
    page.picture("prefect-refusal")
    assert stack.alerts_of(run) == ["refused"]
    assert not stack.tracker.client.search_registered_models("name = 'strict'")


def test_a_training_is_gone_half_a_minute_after_the_click_on_cancel(
    stack: WatchedStack, prefect: PrefectPages
) -> None:
    long = ["training.training_config.max_steps=5000"]
    run = stack.start("retrain", {"recipe": "recipes/docstrings.yaml", "overrides": long})
    stack.reached(run, "of 5,000, loss")
    assert stack.trainers_of(run)
    prefect.open_run(run)
    prefect.cancel()
    clicked = time.monotonic()
    until(lambda: not stack.processes_of(run), 30)
    assert time.monotonic() - clicked < 30
    prefect.state("Cancelled")
    prefect.page.picture("prefect-cancelled")
    # Nobody is alarmed, and the adapter's turn is free: the same is trained at once.
    assert stack.alerts_of(run) == []
    again = stack.retrain("docstrings", "training.training_config.learning_rate=0.005")
    assert again["name"] == "Completed", again


def test_what_a_page_asks_elsewhere_would_have_been_noticed(prefect: PrefectPages) -> None:
    page = prefect.page
    prefect.open_deployments()
    assert page.hosts() == {"127.0.0.1"}
    page.driver.execute_script("fetch('http://elsewhere.example/').catch(() => 0)")
    page.until(lambda: "elsewhere.example" in page.hosts())
