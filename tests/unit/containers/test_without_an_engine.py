"""compose.yaml where no engine runs: each service's own command and variables as a process of this machine.

PostgreSQL is a real server, the S3 store a stand-in; names of services become loopback addresses, volumes folders.
"""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.stack.api import PrefectApi

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
RECIPE = """\
name: small
base: {base}
dataset:
  sources: [{{type: python_source, package: json}}]
  split: {{test: 0.1, salt: small}}
tokenization: {{max_length: 512, long_rows: drop}}
training:
  peft_config: {{r: 4}}
  training_config: {{max_steps: 4, logging_steps: 2, per_device_train_batch_size: 2, learning_rate: 2.0e-3}}
evaluation: {{max_new_tokens: 8, bootstrap_samples: 200}}
promotion: {{policy: automatic}}
schedule: {{cron: "0 2 * * *", timezone: Europe/Berlin}}
"""


@dataclass
class Machine:
    """What an engine does with compose.yaml, as far as processes go."""

    files: Any
    folder: Path
    postgres: str
    """host:port"""
    store: str
    ports: dict[str, int]
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def services(self) -> dict[str, Any]:
        published = {f"LORALINE_{name.upper()}_PORT": str(it) for name, it in self.ports.items()}
        return dict(self.files.compose(values=published)["services"])

    def here(self, service: str, text: str) -> str:
        """A value of the file as it is on this machine."""
        own = "home" if service in ("deploy", "worker") else service
        for there, place in {
            "http://s3:7070": self.store,
            "http://prefect:4200": f"http://127.0.0.1:{self.ports['prefect']}",
            "http://mlflow:5000": f"http://127.0.0.1:{self.ports['mlflow']}",
            "http://127.0.0.1:4200/": f"http://127.0.0.1:{self.ports['prefect']}/",
            "http://127.0.0.1:5000/": f"http://127.0.0.1:{self.ports['mlflow']}/",
            "/etc/loraline/": f"{self.folder}/etc/",
            "/var/lib/loraline": f"{self.folder}/{own}",
            "/var/cache/huggingface": f"{self.folder}/hub",
            "/srv/project": f"{self.folder}/project",
            "/tmp/prefect-pages": f"{self.folder}/prefect-pages",
        }.items():
            text = text.replace(there, place)
        exact = {
            "python": sys.executable,
            "0.0.0.0": "127.0.0.1",
            "4200": str(self.ports["prefect"]),
            "5000": str(self.ports["mlflow"]),
        }
        return exact.get(text, text)

    def environment(self, service: str) -> dict[str, str]:
        of_image = self.files.image_environment(self.services[service]["build"]["target"])
        whole = {**of_image, **self.services[service]["environment"]}
        host, _, port = self.postgres.partition(":")
        return {
            **{name: self.here(service, value) for name, value in whole.items()},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PGHOST": host,
            "PGPORT": port,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def command(self, service: str, words: list[str] | None = None) -> list[str]:
        words = words or self.services[service].get("command") or self._of_image(service)
        found = [self.here(service, word) for word in words]
        if "/" not in found[0]:
            found[0] = str(Path(sys.executable).with_name(found[0]))
        return found

    def run(
        self, service: str, words: list[str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """A service that ends, or another command in it."""
        return subprocess.run(
            self.command(service, words),
            env=self.environment(service),
            cwd=self.folder / "project",
            capture_output=True,
            text=True,
            timeout=900,
        )

    def start(self, service: str) -> None:
        with (self.folder / f"{service}.log").open("ab") as log:
            self.running[service] = subprocess.Popen(
                self.command(service),
                env=self.environment(service),
                cwd=self.folder / "project",
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_healthy(self, service: str) -> bool:
        process = self.running[service]
        assert process.poll() is None, self.log(service)
        check = self.services[service].get("healthcheck", {}).get("test")
        return self.run(service, check[1:] if check else self._check_of_image()).returncode == 0

    def stop(self, service: str, seconds: float) -> None:
        process = self.running.pop(service)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=seconds)

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text(errors="replace")[-6000:]

    def _of_image(self, service: str) -> list[str]:
        target = self.services[service]["build"]["target"]
        (command,) = [
            a for stage, it, a in self.files.dockerfile() if (stage, it) == (target, "CMD")
        ]
        return list(json.loads(command))

    def _check_of_image(self) -> list[str]:
        (check,) = [a for _, it, a in self.files.dockerfile() if it == "HEALTHCHECK"]
        return list(json.loads(check[check.index("[") :]))


def until(what: Callable[[], Any], seconds: float = 600) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.5)
    return found


def psql(server: str, sql: str, user: str = "tester", database: str = "postgres") -> list[Any]:
    import psycopg

    with psycopg.connect(f"postgresql://{user}@{server}/{database}", autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def empty(server: str) -> None:
    for name in ("loraline_prefect", "loraline_mlflow"):
        psql(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def machine(files: Any, postgres: str, s3_stand_in: str, starter: Path) -> Iterator[Machine]:
    """Servers and a worker, started in the order and with the waits of compose.yaml."""
    pytest.importorskip("flask_wtf", reason="MLflow's passwords: pip install 'loraline[test]'")
    server = postgres.rpartition("@")[2].removesuffix("/postgres")
    empty(server)
    if not psql(server, "SELECT 1 FROM pg_roles WHERE rolname = 'loraline'"):
        # What POSTGRES_USER is in the image.
        psql(server, "CREATE ROLE loraline LOGIN SUPERUSER")
    # A socket's path is at most 107 bytes long.
    folder = Path(tempfile.mkdtemp(prefix="loraline-compose-"))
    shutil.copytree(files.root / "deployments/containers", folder / "etc")
    shutil.copytree(files.root / "deployments/job-templates", folder / "etc/job-templates")
    for conf in (folder / "etc").glob("*.conf"):
        conf.write_text(conf.read_text().replace("/tmp/", f"{folder}/"))
    for name in ("project/recipes", "home", "hub", "prefect", "mlflow", "prepare"):
        (folder / name).mkdir(parents=True)
    (folder / "project/recipes/small.yaml").write_text(RECIPE.format(base=starter))
    ports = {}
    for name in ("prefect", "mlflow"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports[name] = free.getsockname()[1]
    found = Machine(files, folder, server, s3_stand_in, ports)
    try:
        prepared = found.run("prepare")
        assert prepared.returncode == 0, prepared.stdout + prepared.stderr
        (folder / "prepared").write_text(prepared.stdout)
        for name in ("prefect", "mlflow"):
            found.start(name)
        for name in ("prefect", "mlflow"):
            until(lambda name=name: found.is_healthy(name))
        deployed = found.run("deploy")
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        (folder / "deployed").write_text(deployed.stdout)
        _pause_what_runs_each_minute(found)
        found.start("worker")
        until(lambda: found.is_healthy("worker"))
        yield found
    finally:
        for name in reversed(list(found.running)):
            found.stop(name, 120)
        empty(server)
        shutil.rmtree(folder)


def _pause_what_runs_each_minute(machine: Machine) -> None:
    """Its processes would be taken for some that a test has left."""
    asked = prefect_of(machine)
    deployment = asked.ask("GET", "/deployments/name/reconcile-registry/reconcile-registry")
    for schedule in deployment["schedules"]:
        asked.ask(
            "PATCH",
            f"/deployments/{deployment['id']}/schedules/{schedule['id']}",
            {"active": False},
        )


def prefect_of(machine: Machine) -> PrefectApi:
    password = machine.environment("worker")["PREFECT_API_AUTH_STRING"]
    return PrefectApi(f"http://127.0.0.1:{machine.ports['prefect']}/api", password)


@pytest.fixture
def api(machine: Machine) -> PrefectApi:
    return prefect_of(machine)


def status(url: str, data: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_what_servers_need_is_made_once(machine: Machine) -> None:
    first = (machine.folder / "prepared").read_text()
    for line in ("database loraline_prefect", "database loraline_mlflow", "bucket loraline"):
        assert f"Created the {line}." in first
    again = machine.run("prepare")
    assert again.returncode == 0, again.stderr
    assert "Created" not in again.stdout
    one = machine.run("prepare", ["python", "/etc/loraline/prepare.py", "prefect"])
    assert one.returncode == 0, one.stderr
    assert "mlflow" not in one.stdout
    assert machine.run("prepare", ["python", "/etc/loraline/prepare.py", "prefekt"]).returncode == 2


def test_each_server_has_its_database_and_no_file_of_its_own(machine: Machine) -> None:
    for database, table in (
        ("loraline_prefect", "flow_run"),
        ("loraline_mlflow", "experiments"),
        ("loraline_mlflow", "alembic_version_auth"),
    ):
        psql(machine.postgres, f"SELECT count(*) FROM {table}", "loraline", database)
    assert not list(machine.folder.rglob("*.db"))


def test_both_servers_ask_for_a_password(machine: Machine, api: PrefectApi) -> None:
    mlflow = f"http://127.0.0.1:{machine.ports['mlflow']}"
    assert status(f"{api.url}/admin/version") == 401
    assert api.ask("GET", "/admin/version")
    assert status(f"{mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0") == 401
    environment = machine.environment("worker")
    login = f"{environment['MLFLOW_TRACKING_USERNAME']}:{environment['MLFLOW_TRACKING_PASSWORD']}"
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    address = f"{mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert status(address, **headers) == 200
    # A page that was opened by that name may change something, as those of loopback may, and no other.
    search = f"{mlflow}/api/2.0/mlflow/experiments/search"
    for origin, expected in (
        (f"http://mlflow:{machine.ports['mlflow']}", 200),
        (mlflow, 200),
        ("http://evil.example:5000", 403),
    ):
        sent = {**headers, "Origin": origin, "Content-Type": "application/json"}
        assert status(search, b'{"max_results": 1}', **sent) == expected, origin
    # By the name of the service, and by no other.
    assert status(address, **headers, Host="mlflow:5000") == 200
    assert status(address, **headers, Host="evil.example:5000") == 403


def test_the_deployments_are_there_and_the_recipe_is_scheduled(
    machine: Machine, api: PrefectApi
) -> None:
    assert "1 recipes are scheduled" in (machine.folder / "deployed").read_text()
    again = machine.run("deploy")
    assert "Nothing changed." in again.stdout
    deployment = api.ask("GET", "/deployments/name/retrain/retrain")
    (schedule,) = deployment["schedules"]
    assert schedule["parameters"]["recipe"] == str(machine.folder / "project/recipes/small.yaml")


def test_a_training_runs_through_to_the_champion_and_its_files_are_in_the_store(
    machine: Machine, api: PrefectApi
) -> None:
    import boto3

    deployment = api.ask("GET", "/deployments/name/retrain/retrain")
    run = api.ask(
        "POST",
        f"/deployments/{deployment['id']}/create_flow_run",
        {
            "parameters": {"recipe": "recipes/small.yaml", "reason": "a test"},
            "state": {"type": "SCHEDULED"},
        },
    )

    def ended() -> Any:
        state = api.ask("GET", f"/flow_runs/{run['id']}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state = until(ended, 900)
    logs = api.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    assert state["type"] == "COMPLETED", (state, [it["message"] for it in logs][-5:])
    environment = machine.environment("worker")
    store = boto3.client(
        "s3",
        endpoint_url=machine.store,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    keys = {it["Key"] for it in store.list_objects_v2(Bucket="loraline", MaxKeys=1000)["Contents"]}
    # Stage outputs by the worker, artifacts through MLflow's server.
    assert {key.split("/")[1] for key in keys if key.startswith("store/")} >= {
        "dataset",
        "training",
    }
    assert any(re.match(r"mlflow/.*adapter_model\.safetensors$", key) for key in keys), sorted(
        keys
    )[:50]
    versions = machine.run("deploy", ["loraline", "versions", "small", "--json"])
    assert versions.returncode == 0, versions.stderr
    assert "champion" in versions.stdout


def test_the_documented_commands_create_the_other_pools(machine: Machine, api: PrefectApi) -> None:
    page = (machine.files.root / "docs/containers.md").read_text()
    kinds = []
    for line in re.findall(r"^.*?(prefect work-pool create .*)$", page, re.M):
        words = line.split()
        kind = words[words.index("--type") + 1]
        # The one on the page is already there, of type process; a pool's type never changes.
        words[words.index("loraline")] = f"loraline-{kind}"
        words.append("--overwrite")
        template = words.index("--base-job-template") + 1
        words[template] = words[template].replace("/etc/loraline/", "deployments/")
        words[template] = str(machine.files.root / words[template])
        done = machine.run("deploy", words)
        assert done.returncode == 0, done.stdout + done.stderr
        pool = api.ask("GET", f"/work_pools/loraline-{kind}")
        assert pool["type"] == kind
        own = json.loads(Path(words[template]).read_text())
        assert pool["base_job_template"]["job_configuration"] == own["job_configuration"]
        kinds.append(kind)
    assert sorted(kinds) == ["docker", "kubernetes", "process"]


def test_no_secret_is_in_an_argument_a_log_or_the_state(machine: Machine) -> None:
    for service in machine.running.values():
        tree = [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]
        assert not [it for it in tree if "canary" in " ".join(it.cmdline())]
    for path in [*machine.folder.glob("*.log"), *(machine.folder / "home").rglob("*")]:
        if path.is_file():
            assert b"canary" not in path.read_bytes(), path


def test_the_worker_ends_all_that_it_runs_in_the_time_that_compose_gives(machine: Machine) -> None:
    tree = psutil.Process(machine.running["worker"].pid).children(recursive=True)
    assert len(tree) >= 3
    grace = machine.services["worker"]["stop_grace_period"]
    machine.stop("worker", float(grace.removesuffix("s")))
    _, alive = psutil.wait_procs(tree, timeout=5)
    assert not alive
