"""`pool.py` of the server's image: the work pool of containers or jobs, made before anybody makes one of processes."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.stack.parts import POOLS

NAME = POOLS["worker"]


@pytest.fixture(scope="module")
def pool(files: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The script as it lies in the image, the templates beside it."""
    folder = tmp_path_factory.mktemp("etc")
    shutil.copy(files.root / "deployments/containers/pool.py", folder)
    shutil.copytree(files.root / "deployments/job-templates", folder / "job-templates")
    spec = importlib.util.spec_from_file_location("pool", folder / "pool.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def client(server: None) -> Iterator[Any]:
    """Of a server without the pool."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as found:
        yield found
        with suppress(ObjectNotFound):
            found.delete_work_pool(NAME)


def defaults(client: Any) -> dict[str, Any]:
    properties = client.read_work_pool(NAME).base_job_template["variables"]["properties"]
    return {name: it.get("default") for name, it in properties.items()}


def test_it_names_what_the_images_and_the_stack_name(pool: Any, files: Any) -> None:
    assert pool.POOL == NAME
    assert files.image_environment("worker")["LORALINE_PROJECT"] == pool.PROJECT


@pytest.mark.parametrize("wrong", ["adapters", ".", "./adapters", "/srv/a:b", "C:/adapters"])
def test_a_project_that_the_engine_would_not_find_is_refused(
    pool: Any, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        pool.arguments(["docker", "--project", wrong])
    assert end.value.code == 2
    assert "is no full path" in capsys.readouterr().err


def test_the_project_is_mounted_once_and_beside_the_state(pool: Any, files: Any) -> None:
    template = json.loads((files.root / "deployments/job-templates/docker.json").read_text())
    for folder in ("/srv/old", "/srv/adapters"):
        template = pool.given(template, pool.arguments(["docker", "--project", folder]))
    assert template["variables"]["properties"]["volumes"]["default"] == [
        "loraline_home:/var/lib/loraline",
        "loraline_hub:/var/cache/huggingface",
        "/srv/adapters:/srv/project:ro",
    ]


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, {}),
        # Prefect's own template has neither default.
        (
            {"image": {}, "volumes": {}},
            {"image": {"default": "worker:2"}, "volumes": {"default": ["/srv/a:/srv/project:ro"]}},
        ),
        ({"volumes": {"default": None}}, {"volumes": {"default": ["/srv/a:/srv/project:ro"]}}),
    ],
)
def test_a_template_of_another_hand_is_no_stumbling_block(
    pool: Any, properties: dict[str, Any], expected: dict[str, Any]
) -> None:
    named = pool.arguments(["docker", "--image", "worker:2", "--project", "/srv/a"])
    template = {"variables": {"properties": properties}}
    assert pool.given(template, named)["variables"]["properties"] == expected


def test_without_a_server_it_says_so_and_starts_none(pool: Any) -> None:
    def run(**more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-P", pool.__file__, "kubernetes"],
            env={"HOME": str(Path(pool.__file__).parent), **more},
            capture_output=True,
            text=True,
            timeout=120,
        )

    unnamed, away = run(), run(PREFECT_API_URL="http://127.0.0.1:9/api")
    assert unnamed.returncode == away.returncode == 1
    assert "PREFECT_API_URL is not set" in unnamed.stderr
    assert "No answer from http://127.0.0.1:9/api" in away.stderr
    assert "Traceback" not in away.stderr


@pytest.mark.long
@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_pool_is_made_from_the_template_and_deploy_leaves_it(
    pool: Any, client: Any, files: Any, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.deploying import Applied, _ensure_pool

    assert pool.main([kind, "--limit", "1", "--image", "registry.example/worker:7"]) == 0
    made = client.read_work_pool(NAME)
    assert (made.type, made.concurrency_limit) == (kind, 1)
    own = json.loads((files.root / f"deployments/job-templates/{kind}.json").read_text())
    assert made.base_job_template["job_configuration"] == own["job_configuration"]
    assert defaults(client)["image"] == "registry.example/worker:7"
    applied = Applied()
    _ensure_pool(client, NAME, applied)
    assert not applied.changed
    assert client.read_work_pool(NAME).type == kind
    capsys.readouterr()
    assert pool.main([kind, "--limit", "1", "--image", "registry.example/worker:7"]) == 0
    assert "as it should be" in capsys.readouterr().out


@pytest.mark.long
def test_a_new_image_is_taken_and_what_the_owner_changed_stays(pool: Any, client: Any) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate

    assert pool.main(["kubernetes", "--limit", "1", "--image", "worker:1"]) == 0
    template = client.read_work_pool(NAME).base_job_template
    template["variables"]["properties"]["memory_limit"]["default"] = "96Gi"
    client.update_work_pool(NAME, WorkPoolUpdate(base_job_template=template, concurrency_limit=4))
    assert pool.main(["kubernetes", "--limit", "1", "--image", "worker:2"]) == 0
    found = defaults(client)
    assert (found["image"], found["memory_limit"]) == ("worker:2", "96Gi")
    assert client.read_work_pool(NAME).concurrency_limit == 4


@pytest.mark.long
def test_a_new_releases_template_keeps_limit_image_and_project(pool: Any, client: Any) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate

    first = ["docker", "--limit", "2", "--image", "worker:1", "--project", "/srv/adapters"]
    assert pool.main(first) == 0
    shipped = client.read_work_pool(NAME).base_job_template
    older = json.loads(json.dumps(shipped))
    older["job_configuration"]["gone"] = "{{ gone }}"
    older["variables"]["properties"]["gone"] = {"type": "string", "default": "x"}
    client.update_work_pool(NAME, WorkPoolUpdate(base_job_template=older))
    assert pool.main(["docker"]) == 0
    assert client.read_work_pool(NAME).base_job_template == older
    assert pool.main(["docker", "--overwrite"]) == 0
    there = client.read_work_pool(NAME)
    assert (there.base_job_template, there.concurrency_limit) == (shipped, 2)


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_pool_with_an_empty_template_is_left_so_or_given_this_release_s(
    pool: Any, client: Any, more: tuple[str, ...]
) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    client.create_work_pool(WorkPoolCreate(name=NAME, type="docker", base_job_template={}))
    assert pool.main(["docker", "--image", "other:2", *more]) == 0
    there = client.read_work_pool(NAME).base_job_template
    assert there == {} if not more else defaults(client)["image"] == "other:2"


@pytest.mark.long
def test_a_pool_of_processes_is_refused_with_the_way_out(
    pool: Any, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.deploying import Applied, _ensure_pool

    _ensure_pool(client, NAME, Applied())
    assert pool.main(["kubernetes"]) == 1
    said = capsys.readouterr().err
    assert "is of type process" in said
    assert "prefect work-pool delete loraline" in said
    assert client.read_work_pool(NAME).type == "process"


@pytest.mark.long
def test_the_limit_keeps_a_second_job_from_being_created(pool: Any, client: Any) -> None:
    """A launcher asks for what is due; a job that waits for its pod is Pending."""
    from prefect import flow
    from prefect.states import Pending, Scheduled

    @flow
    def training() -> None: ...

    assert pool.main(["kubernetes", "--limit", "1"]) == 0
    deployment = client.create_deployment(
        client.create_flow(training), "training", work_pool_name=NAME
    )
    runs = [client.create_flow_run_from_deployment(deployment, state=Scheduled()) for _ in range(2)]

    def due() -> int:
        found = client.get_scheduled_flow_runs_for_work_pool(
            NAME, scheduled_before=datetime.now(UTC)
        )
        return len(found)

    assert due() == 1
    client.set_flow_run_state(runs[0].id, Pending(), force=True)
    assert due() == 0
