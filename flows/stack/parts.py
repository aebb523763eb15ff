"""The parts of the stack: what each one runs, in which environment, and how one sees that it is well."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from flows.connection import RETENTION, Connection, client_environment, server_environment
from flows.stack.databases import Databases
from flows.stack.exposure import PREFECT_PASSWORD, is_loopback
from flows.stack.own_names import allowed_names
from flows.stack.prefect_address import SQLALCHEMY
from flows.stack.settings import StackSettings
from tasks.home import Home

POOLS = {"worker": "loraline", "registry-worker": "loraline-registry"}
"""Part -> work pool. The second one keeps a rollback from waiting for a training."""
REGISTRY_RUNS = 4
"""Runs of the pool `loraline-registry` at once: a look at data, an approved promotion, a look at the registry,
and what a person starts."""


@dataclass(frozen=True)
class Part:
    """One process that the supervisor keeps alive."""

    name: str
    title: str
    module: str
    """What runs, as by `python -m`."""
    arguments: tuple[str, ...] = ()
    health: str = ""
    """An address that answers 200 when the part is well; empty where there is none."""
    url: str = ""
    """Its pages."""
    needs: tuple[str, ...] = ()
    """Health addresses that must answer before it is started."""
    stop_seconds: int = 15
    """Between SIGTERM and SIGKILL."""
    owns_children: bool = True
    """Whether what a former incarnation left running must end before this one starts."""
    priority: int = 10
    """Parts start in this order and end in the reverse."""


def parts(settings: StackSettings) -> list[Part]:
    """All parts, in the order in which they start."""
    prefect = f"{settings.prefect_api}/health"
    mlflow = f"{settings.mlflow_url}/health"
    listening = ("--host", settings.host)
    mlflow_arguments: tuple[str, ...] = ("server", *listening, "--workers", "1")
    mlflow_arguments += ("--port", str(settings.mlflow_port))
    if not is_loopback(settings.host):
        mlflow_arguments += ("--app-name", "basic-auth")
    found = [
        Part(
            "prefect",
            "Prefect server",
            "prefect",
            ("server", "start", *listening, "--port", str(settings.prefect_port)),
            health=prefect,
            url=settings.prefect_url,
            priority=10,
        ),
        Part(
            "mlflow",
            "MLflow server",
            "mlflow",
            mlflow_arguments,
            health=mlflow,
            url=settings.mlflow_url,
            priority=10,
        ),
    ]
    for name, pool in POOLS.items():
        limit = settings.trainings if name == "worker" else REGISTRY_RUNS
        found.append(
            Part(
                name,
                f"Worker of the pool {pool}",
                "prefect",
                (
                    *("worker", "start", "--pool", pool, "--type", "process"),
                    *("--limit", str(limit), "--name", worker_name(name, settings)),
                ),
                needs=(prefect, mlflow),
                stop_seconds=40,
                # A training goes on without its worker, and says itself how it ended.
                owns_children=False,
                priority=20,
            )
        )
    # Stopped first: what ends on purpose must not be taken for dead. It needs no other part: it looks after them.
    found.append(Part("watchdog", "Watchdog", "flows.watchdog", priority=30))
    return found


def worker_name(part: str, settings: StackSettings | None = None) -> str:
    """What Prefect calls the worker: tells ours from those of other machines in the same pool.

    Without `settings` that of a container, which keeps its name.
    """
    return f"{(settings and settings.machine) or os.uname().nodename}-{part}"


def part_environment(
    part: Part,
    home: Home,
    settings: StackSettings,
    databases: Databases,
    environ: Mapping[str, str],
) -> dict[str, str]:
    """The whole environment of a part's process."""
    if part.name == "prefect":
        return {
            **server_environment(home, environ, api_url=settings.prefect_api),
            **(connection_settings(environ) if databases.server else {}),
            **prefect_server_settings(databases),
        }
    if part.name == "mlflow":
        return {
            **mlflow_environment(home, databases, environ),
            **allowed_names(settings, environ),
        }
    return client_of_stack(home, settings, databases, environ)


def connection_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """What a pooler before PostgreSQL, or a server that wakes slowly, needs of Prefect's server."""
    names = (SQLALCHEMY, "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT")
    return {name: value for name, value in environ.items() if name.startswith(names)}


def prefect_server_settings(databases: Databases) -> dict[str, str]:
    """What differs from Prefect's defaults, each because of what the default does in months."""
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": databases.prefect,
        **databases.prefect_variables,
        # Done once, before any client, by `loraline up`.
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
        # Prefect's ten seconds for one statement are short on a disk that a training writes to.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        # In memory, the default, a restart of the server ends running trainings, or their slots stay taken.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        **RETENTION,
    }


def mlflow_environment(
    home: Home, databases: Databases, environ: Mapping[str, str]
) -> dict[str, str]:
    """The MLflow server's environment. Addresses of databases are no arguments: everybody sees those."""
    environment = {
        name: value
        for name, value in environ.items()
        # Settings for another server, which this one would take for its own.
        if not name.startswith(("MLFLOW_TRACKING_", "MLFLOW_REGISTRY_", "MLFLOW_BACKEND_"))
    }
    artifacts = home.mlflow / "artifacts"
    return {
        **environment,
        **home.environment(),
        "MLFLOW_BACKEND_STORE_URI": databases.mlflow,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(artifacts),
        # Seven more processes, for features that are not used here.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def client_of_stack(
    home: Home, settings: StackSettings, databases: Databases, environ: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a worker, of the flows that it runs, and of the watchdog."""
    kept = {
        name: value
        for name, value in environ.items()
        # The servers' own secrets are none of a flow's business.
        if not name.startswith(("PREFECT_SERVER_", "PREFECT_PROFILE"))
        and name not in ("LORALINE_POSTGRES", *_SERVER_SECRETS)
    }
    connection = Connection("stack", settings.prefect_api, "loraline up")
    environment = {
        **kept,
        **home.environment(),
        **client_environment(
            home, connection, {PREFECT_PASSWORD: environ.get(PREFECT_PASSWORD, "")}
        ),
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "LORALINE_PROJECT": str(settings.project),
    }
    if databases.lock:
        environment.setdefault("LORALINE_LOCK_DATABASE", databases.lock)
    return environment


_SERVER_SECRETS = ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")
