"""`compose.yaml`: valid, closed to other machines, without a secret, and the same stack as `loraline up`."""

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flask_cors.core import probably_regex
from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request
from supervisor.datatypes import RestartUnconditionally

from flows.notifying import VARIABLE as NOTIFY
from flows.notifying import blocks_of
from flows.stack.databases import MLFLOW_DATABASE, PREFECT_DATABASE, Databases
from flows.stack.parts import POOLS, parts, prefect_server_settings
from flows.stack.postgres import OLDEST_VERSION
from flows.stack.settings import StackSettings
from tasks.promotion.lock import lock_database
from tasks.promotion.notices import WEBHOOK_SECRET, WEBHOOKS

MORE = ("deployments/compose/gpu.yaml", "deployments/compose/docker-pool.yaml")
SECOND = "deployments/compose/second-machine.yaml"
SERVERS = ("prefect", "mlflow")
OURS = ("prepare", "deploy", "worker", *SERVERS)


def test_the_files_fit_the_compose_specification(files: Any) -> None:
    tool = files.tool("check-jsonschema")
    paths = [str(files.root / name) for name in ("compose.yaml", *MORE, SECOND)]
    done = subprocess.run(
        [tool, "--builtin-schema", "vendor.compose-spec", *paths],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name",
    sorted(
        [
            "LORALINE_POSTGRES_PASSWORD",
            "LORALINE_S3_SECRET",
            "LORALINE_PREFECT_PASSWORD",
            "LORALINE_MLFLOW_PASSWORD",
            "LORALINE_MLFLOW_SECRET_KEY",
        ]
    ),
)
def test_without_a_secret_nothing_starts_and_the_message_says_how(files: Any, name: str) -> None:
    with pytest.raises(KeyError, match=rf"{name}: set it .*docs/containers\.md"):
        files.compose(values={name: ""})


def test_every_variable_without_a_default_is_a_secret_of_the_page(files: Any) -> None:
    needed = set(re.findall(r"\$\{(\w+):\?", files.text("compose.yaml")))
    assert needed == set(files.secrets)
    page = (files.root / "docs/containers.md").read_text(encoding="utf-8")
    for name in [
        *needed,
        *re.findall(r"\$\{(\w+)", "".join(files.text(it) for it in ("compose.yaml", *MORE))),
    ]:
        assert re.search(rf"\b{name}\b", page), name


def test_pages_are_published_on_loopback_and_nothing_else_is(files: Any) -> None:
    services = files.compose(*MORE)["services"]
    published = {name: it["ports"] for name, it in services.items() if "ports" in it}
    assert set(published) == set(SERVERS)
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not [name for name, it in services.items() if "network_mode" in it]


def test_no_service_has_more_rights_than_it_needs(files: Any) -> None:
    for name, service in files.compose(*MORE)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        if name in OURS:
            # The image's own user.
            assert "user" not in service
    sockets = [
        name
        for name, it in files.compose(*MORE)["services"].items()
        if any("docker.sock" in str(volume) for volume in it.get("volumes", []))
    ]
    assert sockets == ["launcher"]


def test_no_log_fills_the_disk(files: Any) -> None:
    for name, service in files.compose(*MORE)["services"].items():
        assert service["logging"]["options"]["max-size"] == "10m", name


def test_no_secret_has_to_be_written_into_a_read_only_container(files: Any) -> None:
    """Compose copies one that comes from a variable or from the file itself; only one from a file is mounted."""
    whole = files.compose(*MORE)
    copied = {name for name, it in whole.get("secrets", {}).items() if "file" not in it}
    for name, service in whole["services"].items():
        used = {it if isinstance(it, str) else it["source"] for it in service.get("secrets", [])}
        assert not (service["read_only"] and used & copied), name
    postgres, prepare = (whole["services"][name]["environment"] for name in ("postgres", "prepare"))
    assert postgres["POSTGRES_PASSWORD"] == prepare["PGPASSWORD"]


def test_images_are_pinned_and_ours_are_of_this_version(files: Any) -> None:
    version = files.project()["version"]
    for name, service in files.compose(*MORE)["services"].items():
        image, sign, tag = service["image"].partition(":")
        assert sign, name
        assert re.search(r"\d+\.\d+", tag), name
        if image.startswith("loraline-"):
            assert tag == version, name
    images = {name: it["image"] for name, it in files.compose()["services"].items()}
    assert int(re.findall(r"\d+", images["postgres"])[0]) >= OLDEST_VERSION
    targets = {stage for stage, _, _ in files.dockerfile()}
    for name in OURS:
        service = files.compose()["services"][name]
        assert service["image"] == f"loraline-{service['build']['target']}:{version}"
        assert service["build"]["target"] in targets


def test_every_part_that_stays_has_a_health_check_and_starts_again(files: Any) -> None:
    services = files.compose(*MORE)["services"]
    health = {stage for stage, it, _ in files.dockerfile() if it == "HEALTHCHECK"}
    for name, service in services.items():
        if name in ("prepare", "deploy", "pool"):
            continue
        assert service["restart"] == "unless-stopped", name
        of_image = service.get("build", {}).get("target") in health
        # Nobody waits for the launcher, and Prefect's page of the pool shows whether it lives.
        assert "healthcheck" in service or of_image or name == "launcher", name


def test_nothing_opens_a_database_before_it_is_migrated_once(files: Any) -> None:
    services = files.compose()["services"]
    for name in SERVERS:
        assert services[name]["depends_on"] == {
            "prepare": {"condition": "service_completed_successfully"}
        }
        assert (
            services["prepare"]["environment"].items()
            >= {
                it: value
                for it, value in services[name]["environment"].items()
                if it.endswith(("CONNECTION_URL", "BACKEND_STORE_URI"))
            }.items()
        )
    assert services["prefect"]["environment"]["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"
    assert services["prepare"]["depends_on"].keys() == {"postgres", "s3"}
    # A recipe that cannot be scheduled must not keep the others' worker from starting.
    assert services["worker"]["depends_on"].keys() == set(SERVERS)


def test_prefect_runs_with_the_settings_of_loraline_up(files: Any) -> None:
    """Each stands against what a default does in months."""
    environment = files.compose()["services"]["prefect"]["environment"]
    wanted = prefect_server_settings(Databases("", ""))
    for name, value in wanted.items():
        if name != "PREFECT_SERVER_DATABASE_CONNECTION_URL":
            assert environment[name] == value, name
    assert environment["PREFECT_SERVER_UI_STATIC_DIRECTORY"].startswith("/tmp/")


def test_the_servers_keep_their_schemas_in_two_databases(files: Any) -> None:
    services = files.compose()["services"]
    prefect = services["prefect"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    mlflow = services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert (prefect, mlflow) == (
        f"postgresql+asyncpg:///{PREFECT_DATABASE}",
        f"postgresql+psycopg:///{MLFLOW_DATABASE}",
    )
    users = configparser.ConfigParser()
    users.read(files.root / "deployments/containers/mlflow-auth.ini")
    assert users["mlflow"]["database_uri"] == mlflow
    assert "admin_password" not in users["mlflow"]


def test_mlflow_answers_to_the_names_it_is_asked_by_and_passes_files_on(files: Any) -> None:
    services = files.compose(values={"LORALINE_MLFLOW_PORT": "5055"})["services"]
    environment = services["mlflow"]["environment"]
    asked = services["worker"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    hosts = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    # By workers, at the published port, through a tunnel that begins elsewhere; and by no other name.
    for name in (asked, "127.0.0.1:5055", "localhost:5055", "localhost:6000"):
        assert is_allowed_host_header(hosts, name), name
    for name in ("evil.example:5000", "mlflow.evil.example:5000", "127.0.0.1.evil.example"):
        assert not is_allowed_host_header(hosts, name), name
    assert environment["MLFLOW_SERVE_ARTIFACTS"] == "true"
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"].startswith("s3://loraline/")
    assert services["mlflow"]["ports"] == ["127.0.0.1:5055:5000"]
    assert "basic-auth" in services["mlflow"]["command"]


@pytest.mark.parametrize("port", ["", "5055"])
def test_mlflows_page_may_change_things_from_wherever_it_is_opened(files: Any, port: str) -> None:
    environment = files.compose(values={"LORALINE_MLFLOW_PORT": port})["services"]["mlflow"][
        "environment"
    ]
    origins = environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    published = port or "5000"
    # The links bear the service's name and port.
    for name in ("mlflow:5000", f"mlflow:{published}", f"127.0.0.1:{published}", "localhost:6000"):
        assert not should_block_cors_request(f"http://{name}", "POST", origins), name
    for name in ("evil.example:5000", "mlflow.evil.example", "mlflow:5000.evil.example"):
        assert should_block_cors_request(f"http://{name}", "POST", origins), name
    # One that is a pattern lets flask-cors answer whatever begins like it.
    assert not any(probably_regex(it) for it in origins)


def test_the_browser_is_led_to_the_published_port(files: Any) -> None:
    services = files.compose(values={"LORALINE_PREFECT_PORT": "4299"})["services"]
    assert services["prefect"]["ports"] == ["127.0.0.1:4299:4200"]
    assert services["prefect"]["environment"]["PREFECT_UI_API_URL"] == "/api"
    assert services["worker"]["environment"]["PREFECT_UI_URL"] == "http://127.0.0.1:4299"


def test_workers_of_several_machines_keep_each_other_out(files: Any) -> None:
    environment = files.compose()["services"]["worker"]["environment"]
    database = lock_database(environment["MLFLOW_TRACKING_URI"], environment)
    assert database == f"postgresql:///{MLFLOW_DATABASE}"
    # Who is asked, and as whom, the driver reads from these.
    assert {"PGHOST", "PGUSER", "PGPASSWORD"} <= environment.keys()
    assert environment["LORALINE_STORE"].startswith("s3://loraline/")


def test_a_flow_knows_no_secret_of_the_servers(files: Any) -> None:
    for name in ("worker", "deploy"):
        environment = files.compose()["services"][name]["environment"]
        assert not [
            it
            for it in environment
            if it.startswith(
                ("PREFECT_SERVER_", "MLFLOW_AUTH_", "MLFLOW_FLASK_", "MLFLOW_BACKEND_")
            )
        ]


def test_no_secret_stands_in_an_address_or_a_command(files: Any) -> None:
    for name, service in files.compose(*MORE)["services"].items():
        assert "canary" not in str(service.get("command")), name
        for variable, value in service.get("environment", {}).items():
            assert "canary" not in value or "://" not in value, f"{name}: {variable}"


def test_whoever_is_told_of_alerts_is_named_to_who_tells(files: Any) -> None:
    told = {
        NOTIFY: "slack-webhook/ops",
        WEBHOOKS: "https://alerts.example/canary",
        WEBHOOK_SECRET: "canary",
    }
    services = files.compose(values=told)["services"]
    # Automations of blocks are made by `loraline deploy`, webhooks are sent by runs and the watchdog.
    assert blocks_of(services["deploy"]["environment"]) == ["slack-webhook/ops"]
    worker = services["worker"]["environment"]
    assert {name: worker[name] for name in (WEBHOOKS, WEBHOOK_SECRET)}.items() <= told.items()
    # Nobody named is no mistake.
    assert blocks_of(files.compose()["services"]["deploy"]["environment"]) == []


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("worker.conf", set()),
        ("registry.conf", {"worker"}),
        ("trainings.conf", {"registry-worker"}),
    ],
)
def test_the_supervisor_keeps_the_parts_of_loraline_up_alive(
    files: Any, name: str, missing: set[str], tmp_path: Path
) -> None:
    """The same commands, times and order: whoever changes `flows.stack.parts` is told here."""
    from supervisor.options import ServerOptions

    folder = files.root / "deployments/containers"
    options = ServerOptions()
    options.environ_expansions = {"ENV_LORALINE_TRAININGS": "1"}
    # As supervisord reads it, with what it includes.
    options.realize(["-c", str(folder / name), "--nodaemon"], doc="")
    assert options.nodaemon
    assert options.pidfile == "/tmp/supervisord.pid"
    assert [it["file"] for it in options.server_configs] == ["/tmp/supervisor.sock"]
    programs = {it.name: it.process_configs[0] for it in options.process_group_configs}
    known = {it.name: it for it in parts(StackSettings(project=tmp_path)) if it.name not in SERVERS}
    assert set(programs) == set(known) - missing
    for part, program in programs.items():
        command = " ".join(["python", "-P", "-m", known[part].module, *known[part].arguments])
        assert program.command == command
        assert program.stopwaitsecs == known[part].stop_seconds
        assert program.priority == known[part].priority
        assert program.autorestart is RestartUnconditionally
        assert program.stopasgroup
        assert program.killasgroup
    assert set(POOLS) | {"watchdog"} == set(known)


def test_the_pool_of_containers_is_there_before_anybody_makes_another(files: Any) -> None:
    services = files.compose(*MORE)["services"]
    assert services["pool"]["depends_on"] == {"prefect": {"condition": "service_healthy"}}
    for name in ("deploy", "launcher"):
        ended = {"pool": {"condition": "service_completed_successfully"}}
        assert services[name]["depends_on"].items() >= ended.items(), name
    # Else a new release's runs would be of the old one.
    command = services["pool"]["command"]
    version = files.project()["version"]
    assert command[command.index("--image") + 1] == f"loraline-worker:{version}"
    # One that is deleted while it runs would come back with Prefect's own template.
    assert "--no-create-pool-if-not-found" in services["launcher"]["command"]


def test_a_run_in_a_container_finds_the_recipes_of_the_host(files: Any) -> None:
    """It is started by the host's engine, to which neither `.` nor a path of the launcher's means anything."""
    command = files.compose(*MORE)["services"]["pool"]["command"]
    assert command[command.index("--project") + 1] == "/srv/adapters"
    script = command[1]
    steps = [a for stage, it, a in files.dockerfile() if (stage, it) == ("server", "COPY")]
    assert any(f"deployments/containers/{Path(script).name}" in it for it in steps)
    with pytest.raises(KeyError, match=r"LORALINE_PROJECT_FOLDER: set it .* to the full path"):
        files.compose(*MORE, values={"LORALINE_PROJECT_FOLDER": ""})


def test_a_second_machine_trains_and_leaves_the_rest_to_the_first(files: Any) -> None:
    values = {"LORALINE_MACHINE": "second", "LORALINE_FIRST_MACHINE": "192.0.2.10"}
    first = files.compose()["services"]["worker"]
    second = files.compose(SECOND, values=values)["services"]["worker"]
    assert second["hostname"] == "second"
    assert "/etc/loraline/trainings.conf" in second["command"]
    assert "/etc/loraline/trainings.conf" in second["healthcheck"]["test"]
    # Every server that its environment names is on the other machine.
    named = " ".join(map(str, second["environment"].values()))
    reached = {it.partition(":")[0] for it in second["extra_hosts"]}
    servers = {it for it in files.compose()["services"] if re.search(rf"\b{it}:\d", named)}
    assert reached == servers | {"postgres"}
    assert second["environment"] == first["environment"]
    assert second["volumes"] == first["volumes"]
    for name in values:
        with pytest.raises(KeyError, match=f"{name}: set it to"):
            files.compose(SECOND, values={**values, name: ""})


def test_a_container_has_time_to_end_what_the_supervisor_ends(files: Any, tmp_path: Path) -> None:
    known = [it for it in parts(StackSettings(project=tmp_path)) if it.name not in SERVERS]
    # Parts of one priority end together, the priorities one after the other.
    longest: dict[int, int] = {}
    for part in known:
        longest[part.priority] = max(longest.get(part.priority, 0), part.stop_seconds)
    grace = files.compose()["services"]["worker"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > sum(longest.values()) + 20
    (pod,) = [it for it in files.kubernetes("stack") if it["kind"] == "StatefulSet"]
    assert (
        pod["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        > sum(longest.values()) + 20
    )


def test_the_worker_keeps_its_name_when_its_container_is_made_anew(files: Any) -> None:
    """By its name the watchdog tells its own workers from those of other machines."""
    assert files.compose()["services"]["worker"]["hostname"] == "loraline-worker"


def test_a_gpu_is_asked_for_only_where_the_second_file_is_named(files: Any) -> None:
    assert "deploy" not in files.compose()["services"]["worker"]
    with_gpu = files.compose("deployments/compose/gpu.yaml")["services"]["worker"]
    (device,) = with_gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    # The rest is as without.
    assert with_gpu["environment"] == files.compose()["services"]["worker"]["environment"]


def test_what_must_outlive_a_container_lies_in_a_volume(files: Any) -> None:
    whole = files.compose()
    used = {
        str(volume).partition(":")[0]: name
        for name, it in whole["services"].items()
        for volume in it.get("volumes", [])
        if isinstance(volume, str)
    }
    assert set(used) == set(whole["volumes"])
    image = files.image_environment("worker")
    targets = {
        str(v).split(":")[1] for v in whole["services"]["worker"]["volumes"] if isinstance(v, str)
    }
    assert targets == {image["LORALINE_HOME"], image["HF_HOME"]}
    (project,) = [v for v in whole["services"]["worker"]["volumes"] if isinstance(v, dict)]
    assert project["target"] == image["LORALINE_PROJECT"]
    # Prefect keeps the leases of running flows below its home.
    assert image["PREFECT_HOME"].startswith("/var/lib/loraline/")
    assert "prefect:/var/lib/loraline" in whole["services"]["prefect"]["volumes"]


@pytest.mark.parametrize("service", SERVERS)
def test_a_health_check_is_code_that_runs(files: Any, service: str) -> None:
    """Against a port where nothing listens it says so by its exit code, and not by a syntax error."""
    kind, program, flag, code = files.compose()["services"][service]["healthcheck"]["test"]
    assert (kind, program, flag) == ("CMD", "python", "-c")
    port = re.findall(r"127\.0\.0\.1:(\d+)", code)[0]
    done = subprocess.run(
        [sys.executable, "-c", code.replace(f":{port}/", ":9/")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


def test_the_commands_of_the_page_write_every_secret_and_compose_is_content(
    files: Any, tmp_path: Path
) -> None:
    page = (files.root / "docs/containers.md").read_text(encoding="utf-8")
    (block,) = [it for it in re.findall(r"```bash\n(.*?)```", page, re.S) if "> .env" in it]
    # As pasted into a shell, which afterwards makes files as it did before.
    block = f"umask 022\n{block}touch later"
    done = subprocess.run(["bash", "-ec", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "later").stat().st_mode & 0o777 == 0o644
    path = tmp_path / ".env"
    assert path.stat().st_mode & 0o077 == 0
    written = dict(line.split("=", 1) for line in path.read_text().splitlines())
    assert set(written) == set(files.secrets)
    assert len(set(written.values())) == len(written)
    assert len(written["LORALINE_MLFLOW_PASSWORD"]) >= 12
    services = files.compose(values=written)["services"]
    assert "canary" not in str(services)
    user, sign, password = services["prefect"]["environment"][
        "PREFECT_SERVER_API_AUTH_STRING"
    ].partition(":")
    assert (user, sign) == ("admin", ":")
    assert len(password) >= 24


def test_every_file_that_the_page_names_is_there(files: Any) -> None:
    page = (files.root / "docs/containers.md").read_text(encoding="utf-8")
    named = set(re.findall(r"deployments/[\w./-]+[\w]", page))
    assert len(named) >= 7
    assert not [it for it in named if not (files.root / it).exists()]
