"""The shipped deployments fit their flows; Prefect itself ignores unknown keys and parameters."""

import importlib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())


@pytest.mark.parametrize("deployment", FILE["deployments"], ids=lambda d: str(d["name"]))
def test_a_deployment_names_known_keys_and_fits_its_flow(deployment: dict) -> None:
    from prefect.cli.deploy._models import DeploymentConfig

    assert set(deployment) <= set(DeploymentConfig.model_fields)
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    for schedule in deployment.get("schedules", [{}]):
        flow.validate_parameters({**deployment["parameters"], **schedule.get("parameters", {})})


def test_the_pull_step_names_no_folder_of_the_deploying_machine() -> None:
    assert [next(iter(step.values()))["directory"] for step in FILE["pull"]] == [
        "{{ $LORALINE_PROJECT }}"
    ]
