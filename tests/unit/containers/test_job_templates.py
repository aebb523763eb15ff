"""The base job templates of the work pools: what Prefect makes of them is a container or a job that can run."""

import asyncio
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flows.stack.reaper import PENDING_CONTAINER_SECONDS

KINDS = ("process", "docker", "kubernetes")


@pytest.fixture
def template(files: Any) -> Any:
    """Reads a template."""

    def read(kind: str) -> dict[str, Any]:
        text = (files.root / f"deployments/job-templates/{kind}.json").read_text()
        return dict(json.loads(text))

    return read


def made_of(template: dict[str, Any], values: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a worker makes of it: defaults, then a deployment's own values, then the placeholders filled."""
    from prefect.utilities.templating import apply_values

    properties = template["variables"]["properties"]
    # As Prefect does: what has no value by default is left out of the result.
    defaults = {
        name: it["default"] for name, it in properties.items() if it.get("default") is not None
    }
    filled = apply_values(template["job_configuration"], {**defaults, **(values or {})})
    return dict(filled)


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_takes_the_template_and_every_placeholder_has_a_variable(
    template: Any, kind: str
) -> None:
    from prefect.server.schemas.actions import WorkPoolCreate

    WorkPoolCreate(name="loraline", type=kind, base_job_template=template(kind))
    text = json.dumps(template(kind)["job_configuration"])
    used = set(re.findall(r"\{\{ (\w+) \}\}", text))
    assert used == set(template(kind)["variables"]["properties"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_variable_is_explained_and_its_default_fits_it(template: Any, kind: str) -> None:
    import jsonschema

    schema = template(kind)["variables"]
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, it in schema["properties"].items():
        assert len(it["description"]) > 20, name
        assert it["title"], name
        if "default" in it:
            one = {"properties": {name: it}, "definitions": schema.get("definitions", {})}
            jsonschema.validate({name: it["default"]}, one)


def test_a_pool_of_processes_is_what_prefect_makes_by_default(template: Any) -> None:
    """`loraline deploy` creates the pool from Prefect's own; the file makes the same one by command."""
    from prefect.workers.process import ProcessWorker

    own = ProcessWorker.get_default_base_job_template()
    ours = template("process")
    assert ours["job_configuration"] == own["job_configuration"]
    assert set(ours["variables"]["properties"]) == set(own["variables"]["properties"])


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_job_of_kubernetes_fits_its_schema_and_asks_for_gpus(template: Any, gpus: int) -> None:
    job = made_of(
        template("kubernetes"),
        {"gpus": gpus, "name": "quickstart", "labels": {}, "annotations": {}},
    )["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    # The limit is a number, and no text: Kubernetes would take both, the scheduler's arithmetic is the same.
    assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert container["resources"]["requests"]["nvidia.com/gpu"] == gpus
    assert "cpu" not in container["resources"]["limits"]
    # Prefect's own checks ask for these two here, where Kubernetes has no place for them; and fills in these.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    container["env"], container["args"] = (
        [{"name": "A", "value": "b"}],
        ["prefect", "flow-run", "execute"],
    )
    validation = pytest.importorskip("kubernetes_validate", reason="pip install 'loraline[test]'")
    validation.validate(job, desired_version="1.33", strict=True)


def test_a_job_of_kubernetes_is_as_closed_as_the_manifests(template: Any, files: Any) -> None:
    pod = made_of(template("kubernetes"))["job_manifest"]["spec"]["template"]["spec"]
    worker = next(
        it["spec"]["template"]["spec"]
        for it in files.kubernetes("stack")
        if it["kind"] == "StatefulSet"
    )
    assert pod["securityContext"] == worker["securityContext"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    (container,), (theirs,) = pod["containers"], worker["containers"]
    for name in ("securityContext", "envFrom", "volumeMounts"):
        assert container[name] == theirs[name], name
    claims = [
        it["persistentVolumeClaim"]["claimName"]
        for it in pod["volumes"]
        if "persistentVolumeClaim" in it
    ]
    assert claims == ["loraline-home", "loraline-hub"]
    labels = made_of(template("kubernetes"))["job_manifest"]["spec"]["template"]["metadata"][
        "labels"
    ]
    assert labels == {"app.kubernetes.io/component": "job"}


def test_images_of_launched_runs_are_of_this_version(template: Any, files: Any) -> None:
    for kind in ("docker", "kubernetes"):
        image = template(kind)["variables"]["properties"]["image"]["default"]
        assert image == f"loraline-worker:{files.project()['version']}"


def test_a_container_knows_what_the_worker_of_compose_knows(template: Any, files: Any) -> None:
    """The launcher brings PREFECT_API_*; secrets come from blocks, which it resolves when a run starts."""
    wanted = files.compose()["services"]["deploy"]["environment"]
    known = template("docker")["variables"]["properties"]["env"]["default"]
    # Only who deploys reads which blocks are told.
    launcher = {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING"}
    assert set(wanted) - set(known) == {*launcher, "LORALINE_NOTIFY"}
    for name, value in known.items():
        if "canary" in wanted[name]:
            assert re.fullmatch(r"\{\{ prefect\.blocks\.secret\.loraline-[a-z0-9-]+ \}\}", value), (
                name
            )
        else:
            assert value == wanted[name], name
    page = (files.root / "docs/containers.md").read_text()
    for block in re.findall(r"blocks\.secret\.([\w-]+)", json.dumps(known)):
        assert block in page, block


def test_a_container_is_as_closed_as_composes_and_gets_gpus(template: Any, files: Any) -> None:
    compose = files.compose()
    made = made_of(template("docker"))
    create = made["container_create_kwargs"]
    worker = compose["services"]["worker"]
    assert create["read_only"] is True
    assert (create["cap_drop"], create["security_opt"]) == (
        worker["cap_drop"],
        worker["security_opt"],
    )
    assert create["shm_size"] == worker["shm_size"]
    assert create["init"] == worker["init"]
    assert create["device_requests"] == [
        {"driver": "nvidia", "count": -1, "capabilities": [["gpu"]]}
    ]
    assert (
        made_of(template("docker"), {"device_requests": []})["container_create_kwargs"][
            "device_requests"
        ]
        == []
    )
    # Compose names what it creates after the project.
    project = compose["name"]
    assert made["networks"] == [f"{project}_default"]
    volumes = [it for it in worker["volumes"] if isinstance(it, str)]
    assert made["volumes"] == [f"{project}_{it}" for it in volumes]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_worker_reads_every_setting_that_the_template_gives_it(
    template: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that it only declares would be a promise on the pool's page that nobody keeps."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(sys.prefix) / "pools")])
    pytest.importorskip(f"prefect_{kind}", reason="make install")
    import prefect.workers.base as base

    package = importlib.util.find_spec(f"prefect_{kind}")
    assert package is not None
    assert package.origin is not None
    own = Path(package.origin).with_name("worker.py").read_text()
    text = own + Path(str(base.__file__)).read_text()
    given = set(template(kind)["job_configuration"])
    assert given
    assert not {it for it in given if not re.search(rf"(?:self|configuration)\.{it}\b", text)}


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_workers_own_code_makes_a_run_of_it(
    template: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Prefect's packages for these pools, at the versions of the server's image."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(sys.prefix) / "pools")])
    pytest.importorskip(f"prefect_{kind}", reason="make install")
    import prefect.workers.base as base
    from prefect.client.schemas.objects import FlowRun
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if kind == "docker":
        from prefect_docker.worker import DockerWorkerJobConfiguration as Configuration
    else:
        from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration

    async def as_it_is(template: Any, **_: Any) -> Any:
        return template

    # No server is asked for blocks here.
    monkeypatch.setattr(base, "resolve_block_document_references", as_it_is)
    monkeypatch.setattr(base, "resolve_variables", as_it_is)
    values = {"env": {"LORALINE_DEBUG": "1"}}
    # An address that nobody asks; without one, Prefect would start a server for the test.
    with temporary_settings({PREFECT_API_URL: "http://prefect:4200/api"}):
        found = asyncio.run(Configuration.from_template_and_values(template(kind), values))
        found.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="quickstart v7"))
    assert found.command == "prefect flow-run execute"
    if kind == "docker":
        known = template(kind)["variables"]["properties"]["env"]["default"]
        # A run's own variable comes beside the defaults.
        assert {**known, "LORALINE_DEBUG": "1"}.items() <= found.env.items()
        assert found.get_network_mode() is None
        return
    (container,) = found.job_manifest["spec"]["template"]["spec"]["containers"]
    names = {it["name"]: it.get("value") for it in container["env"]}
    assert names["LORALINE_DEBUG"] == "1"
    # A pod that is evicted is scheduled again by Prefect.
    assert names["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    labels = found.job_manifest["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "job"


def test_the_page_says_how_long_a_job_may_wait(files: Any) -> None:
    page = (files.root / "docs/containers.md").read_text()
    assert PENDING_CONTAINER_SECONDS == 2 * 3600
    assert re.search(r"A pod may wait for two hours", page)
