"""The shipped deployments fit their flows, and a file that does not is refused; Prefect checks neither."""

import json
import re
from pathlib import Path

import pytest
import yaml

from flows.deployment_file import DeploymentFile, mistakes_of, read_deployments
from flows.pull_steps import mistakes_of_step
from flows.stack.parts import REGISTRY_RUNS
from tasks.errors import UserError
from tasks.share import shared

ROOT = Path(__file__).resolve().parents[2]
FILE = read_deployments()
TEXT = (shared("deployments") / "prefect.yaml").read_text()


@pytest.mark.parametrize("name", [it.name for it in FILE.deployments])
def test_a_deployment_and_its_schedules_fit_its_flow(name: str) -> None:
    deployment = FILE.deployment(name)
    assert mistakes_of(deployment) == []
    for schedule in deployment.schedules:
        # What the run will do itself, where a misfit would crash it without a word.
        deployment.flow.validate_parameters({**deployment.parameters, **schedule.parameters})


def test_every_flow_that_a_person_starts_is_deployed() -> None:
    assert {it.name for it in FILE.deployments} == {
        "retrain",
        "evaluate",
        "predict",
        "watch-data",
        "promote",
        "rollback",
        "approve",
        "reconcile-registry",
    }


def test_every_field_of_a_form_says_what_it_is() -> None:
    silent = [
        f"{it.name}.{name}"
        for it in FILE.deployments
        for name, field in it.form["properties"].items()
        if not field.get("description")
    ]
    assert silent == []


def test_the_form_of_a_retraining_asks_for_recipe_overrides_and_reason() -> None:
    form = FILE.deployment("retrain").form
    shown = sorted(form["properties"], key=lambda name: form["properties"][name]["position"])
    assert shown == ["recipe", "overrides", "force", "reason"]
    # A run of the form with an empty recipe is refused by the server.
    assert form["properties"]["recipe"]["minLength"] == 1


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"recipe": "recipes/a.yaml"}, None),
        ({"recipe": "/srv/my recipes/a.yaml", "overrides": None}, None),
        ({"overrides": ["training.peft_config.r=8", " seed = 7", "name=b"]}, None),
        ({"overrides": ["dataset.sources.0.path=rows.jsonl", "evaluation.gate=[]"]}, None),
        ({"recipe": ""}, "recipe"),
        ({"recipe": " recipes/a.yaml"}, "recipe"),
        ({"overrides": ["training.peft_config.r: 8"]}, "overrides"),
        ({"overrides": ["seed=7", "--set seed=8"]}, "overrides"),
        ({"overrides": ["trainig.peft_config.r=8"]}, "overrides"),
        ({"overrides": ["training..r=8"]}, "overrides"),
        ({"overrides": "seed=7"}, "overrides"),
    ],
)
def test_what_a_form_of_a_retraining_would_be_refused_for(
    given: dict[str, object], refused: str | None
) -> None:
    """As the server validates what was written into the form."""
    from prefect.utilities.schema_tools.validation import validate

    form = FILE.deployment("retrain").form
    errors = validate(given, form, ignore_required=True)
    places = {error.json_path.removeprefix("$.") for error in errors}
    assert places == ({refused} if refused else set())


@pytest.mark.parametrize(
    ("name", "field", "refused", "taken"),
    [
        ("watch-data", "after_new_rows", [0, -1, 1.5], [None, 1]),
        ("watch-data", "after_days", [0, -0.5], [None, 0.5]),
        ("predict", "max_tokens", [0, -1], [None, 1]),
        ("approve", "hours", [0, -1, 8761, None], [0.5, 8760]),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_the_form_and_by_the_flow(
    name: str, field: str, refused: list[float | None], taken: list[float | None]
) -> None:
    from prefect.exceptions import ParameterTypeError
    from prefect.utilities.schema_tools.validation import validate

    deployment = FILE.deployment(name)
    needed = dict.fromkeys(deployment.form.get("required", []), "x")
    for value in refused:
        assert validate({field: value}, deployment.form, ignore_required=True), value
        with pytest.raises(ParameterTypeError, match=field):
            deployment.flow.validate_parameters({**needed, field: value})
    for value in taken:
        assert not validate({field: value}, deployment.form, ignore_required=True), value
        deployment.flow.validate_parameters({**needed, field: value})


def test_the_forms_examples_are_overrides_of_a_shipped_recipe() -> None:
    from flows.recipe_form import EXAMPLES
    from tasks.recipe import load_recipe

    recipe = shared("recipes") / "quickstart.yaml"
    for example in EXAMPLES:
        assert load_recipe(recipe, (example,)) != load_recipe(recipe)
    shown = json.dumps(FILE.deployment("retrain").form["properties"]["overrides"])
    assert all(example in shown for example in EXAMPLES)


def test_no_deployment_that_trains_has_a_recipe_by_default() -> None:
    assert FILE.deployment("retrain").parameters == {}


@pytest.mark.parametrize("name", ["retrain", "evaluate", "predict"])
def test_what_takes_long_outlasts_five_minutes_without_prefects_server(name: str) -> None:
    environment = FILE.deployment(name).work_pool.job_variables["env"]
    attempts = int(environment["PREFECT_CLIENT_MAX_RETRIES"])
    # The client's pauses are 2, 4, 8 ... seconds, give or take a fifth.
    assert 300 < 0.8 * sum(2**n for n in range(1, attempts + 1)) < 600


@pytest.mark.parametrize("name", ["watch-data", "approve"])
def test_what_takes_long_beside_the_promotions_runs_once_at_a_time(name: str) -> None:
    deployment = FILE.deployment(name)
    assert deployment.work_pool.name == FILE.deployment("rollback").work_pool.name
    limit = deployment.concurrency_limit
    assert limit is not None
    assert (limit.limit, limit.collision_strategy) == (1, "ENQUEUE")


def test_a_rollback_finds_a_slot_however_busy_the_registrys_worker_is() -> None:
    pool = FILE.deployment("rollback").work_pool.name
    by_themselves = [
        it
        for it in FILE.deployments
        if it.work_pool.name == pool and it.name not in ("promote", "rollback")
    ]
    assert len(by_themselves) >= 3
    # Without a limit a deployment could take all slots.
    taken = sum(it.concurrency_limit.limit if it.concurrency_limit else 99 for it in by_themselves)
    assert taken < REGISTRY_RUNS
    for path in (
        "deployments/README.md",
        "deployments/containers/registry.conf",
        "docs/promotion.md",
    ):
        assert worker_limits((ROOT / path).read_text(), pool) == [REGISTRY_RUNS], path
    assert worker_limits(TEXT, pool) == [REGISTRY_RUNS]


def worker_limits(text: str, pool: str) -> list[int]:
    """`--limit` of each command that starts a worker of the pool."""
    return [int(it) for it in re.findall(rf"--pool {pool} .*--limit (\d+)", text)]


def test_the_pull_step_names_no_folder_of_the_deploying_machine() -> None:
    assert [next(iter(step.values()))["directory"] for step in FILE.pull] == [
        "{{ $LORALINE_PROJECT }}"
    ]


def test_prefects_own_command_reads_the_same_file() -> None:
    from prefect.cli.deploy._models import PrefectYamlModel

    read = PrefectYamlModel.model_validate(yaml.safe_load(TEXT))
    assert [it.name for it in read.deployments] == [it.name for it in FILE.deployments]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("work_pool:", "work_pol:", "work_pol"),
        (
            "      recipe: recipes/quickstart.yaml",
            "      recip: a.yaml",
            "has no parameter 'recip'",
        ),
        ("version: champion", "version: [3]", "version"),
        ("flows.retrain.retrain", "flows.retrain.retrian", "there is no flow"),
        ("interval: 60", "interval: 60\n        cron: 0 2 * * *", "either `cron` or `interval`"),
        ("interval: 60", "cron: 0 25 * * *", "0 25"),
        ("interval: 60", "cron: 0 2 * * 5L", "5L"),
        ("interval: 60", "cron: 0 2 * * *\n        timezone: Europe/Berln", "no IANA time zone"),
        ("interval: 60", "interval: 60\n        timezone: Europe/Berlin", "changes nothing of an"),
        (
            "steps.set_working_directory",
            "steps.set_folder",
            r"pull.1: there is no function .*set_folder",
        ),
        ("prefect.deployments.steps.set", "prefct.set", r"pull.1: there is no function prefct"),
        ('directory: "{{', 'folder: "{{', "pull.1: .*set_working_directory: .*'directory'"),
        ('LORALINE_PROJECT }}"', 'LORALINE_PROJECT }}"\n    id: a', "has one key"),
        ("expect: [loraline.retrain]", "expects: [loraline.retrain]", "unknown key 'expects'"),
        ('reason: "{{ event.payload.reason }}"', "why: x", "has no parameter 'why'"),
        ("name: evaluate", "name: predict", "predict stands there twice"),
    ],
)
def test_a_mistake_in_the_file_is_refused_by_name(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in TEXT
    wrong = tmp_path / "prefect.yaml"
    wrong.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_deployments(wrong)


def test_a_step_without_its_function_may_come_with_a_package_that_the_worker_installs() -> None:
    step = {"absent_package.steps.pull": {"requires": "absent-package"}}
    assert mistakes_of_step(step) == []
    assert mistakes_of_step({"absent_package.steps.pull": {}}) != []
    absent = {"prefect.deployments.steps.pull_it": {"requires": "prefect"}}
    assert "there is no function" in mistakes_of_step(absent)[0]
    assert "is no mapping" in mistakes_of_step({"prefect.deployments.steps.git_clone": None})[0]


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    latin = tmp_path / "prefect.yaml"
    latin.write_bytes(TEXT.replace("Retrain", "Ümlernen", 1).encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        read_deployments(latin)


def test_a_schedule_that_leaves_a_required_parameter_open_is_refused() -> None:
    data = yaml.safe_load(TEXT)
    predict = next(it for it in data["deployments"] if it["name"] == "predict")
    predict["schedules"] = [{"slug": "nightly", "cron": "0 3 * * *"}]
    deployment = DeploymentFile.model_validate(data).deployment("predict")
    assert [line for line in mistakes_of(deployment) if "'output'" in line] == [
        "deployments.predict.schedules.nightly: nothing gives the parameter 'output'"
    ]
