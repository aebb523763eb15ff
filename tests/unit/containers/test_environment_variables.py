"""Every variable that the container files set is one that somebody reads: a misspelt one would do nothing, silently."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OTHERS = {
    "PATH": "the shell",
    "HOME": "every library that keeps something in the user's folder",
    "PYTHONDONTWRITEBYTECODE": "Python",
    "PYTHONSAFEPATH": "Python",
    "PYTHONUNBUFFERED": "Python",
    "PIP_DISABLE_PIP_VERSION_CHECK": "pip",
    "PGHOST": "libpq and asyncpg",
    "POSTGRES_USER": "the image postgres",
    "POSTGRES_PASSWORD": "the image postgres",
    "ROOT_ACCESS_KEY_ID": "versitygw",
    "ROOT_SECRET_ACCESS_KEY": "versitygw",
    "VGW_PORT": "versitygw",
    "VGW_HEALTH": "versitygw",
    "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_NAME": "prefect-kubernetes",
    "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_KEY": "prefect-kubernetes",
    "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES": "prefect-kubernetes",
}
"""What is read by programs that are not installed here, or not Python. Short on purpose."""


def named(files: Any) -> Iterator[tuple[str, str]]:
    """(where, variable)."""
    for target in ("server", "worker"):
        for name in files.image_environment(target):
            yield f"Dockerfile ({target})", name
    more = ("deployments/compose/gpu.yaml", "deployments/compose/docker-pool.yaml")
    for service, settings in files.compose(*more)["services"].items():
        for name in settings.get("environment", {}):
            yield f"compose ({service})", name
    for it in files.kubernetes():
        place = f"{it['kind']} {it['metadata']['name']}"
        if it["kind"] == "ConfigMap":
            yield from ((place, name) for name in it["data"])
        pod = (
            it.get("spec", {}).get("template", {}).get("spec", {})
            if it["kind"] != "Service"
            else {}
        )
        for container in [*pod.get("initContainers", []), *pod.get("containers", [])]:
            yield from ((place, variable["name"]) for variable in container.get("env", []))
    text = (files.root / "deployments/kubernetes/stack/secrets.example.yaml").read_text()
    yield from (("secrets.example.yaml", name) for name in re.findall(r"^  ([A-Z_]+):", text, re.M))
    text = (files.root / "deployments/job-templates/docker.json").read_text()
    yield from (
        ("docker.json", name)
        for name in re.findall(r'"([A-Z][A-Z0-9]*_[A-Z0-9_]+|PG[A-Z]+)":', text)
    )


def source(*modules: str) -> str:
    """The text of installed modules; none is imported, for some start half a server."""
    texts = []
    for module in modules:
        package, *inside = module.split(".")
        spec = importlib.util.find_spec(package)
        assert spec is not None, package
        assert spec.origin is not None, package
        path = Path(spec.origin).parent.joinpath(*inside)
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        texts.append(file.read_text(encoding="utf-8"))
    return "\n".join(texts)


def ours(files: Any) -> str:
    """Our code, and the supervisor's files, which read %(ENV_NAME)s."""
    texts = [
        it.read_text() for top in ("flows", "tasks") for it in (files.root / top).rglob("*.py")
    ]
    confs = (files.root / "deployments/containers").glob("*.conf")
    return "\n".join(
        [*texts, *(it.read_text().replace("%(ENV_", '"').replace(")s", '"') for it in confs)]
    )


@pytest.fixture(scope="module")
def readers(files: Any) -> dict[str, Any]:
    """Prefix -> whether a variable with it is read."""
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    prefect = set(_get_settings_fields(Settings))
    mlflow = source(
        "mlflow.environment_variables",
        "mlflow.cli",
        "mlflow.utils.cli_args",
        "mlflow.server.auth.config",
    )
    code = ours(files)
    aws = source(
        "botocore.credentials", "botocore.configprovider", "botocore.session", "botocore.utils"
    )
    postgres = source("asyncpg.connect_utils")
    torch = source("torch._inductor.runtime.cache_dir_utils")
    hub = source("huggingface_hub.constants", "huggingface_hub.utils._auth")

    def quoted(name: str, text: str) -> bool:
        return bool(re.search(rf"[\"']{name}[\"']", text))

    return {
        "LORALINE_": lambda name: quoted(name, code),
        "PREFECT_": lambda name: name in prefect,
        "MLFLOW_": lambda name: quoted(name, mlflow),
        # Botocore makes the names of endpoints out of those of services.
        "AWS_": lambda name: (
            quoted(name, aws)
            or (
                name == "AWS_ENDPOINT_URL_S3"
                and "AWS_ENDPOINT_URL" in aws + source("botocore.configprovider")
            )
        ),
        "PG": lambda name: quoted(name, postgres),
        "HF_": lambda name: quoted(name, hub),
        "TORCHINDUCTOR_": lambda name: quoted(name, torch),
        "DO_NOT_TRACK": lambda name: quoted(name, code),
    }


def test_every_variable_has_a_reader(files: Any, readers: dict[str, Any]) -> None:
    found = list(named(files))
    assert len({name for _, name in found}) > 50
    unread = {
        (where, name)
        for where, name in found
        if name not in OTHERS
        and not any(name.startswith(prefix) and reads(name) for prefix, reads in readers.items())
    }
    assert not unread


def test_a_misspelt_variable_would_be_noticed(readers: dict[str, Any]) -> None:
    for name in (
        "LORALINE_HOUSE",
        "PREFECT_SERVER_DATABSE_TIMEOUT",
        "MLFLOW_ALLOWED_HOSTS",
        "AWS_SECRET_KEY_ID",
        "PGPASS",
        "HF_HOUSE",
        "TORCHINDUCTOR_CACHE",
    ):
        assert not any(
            name.startswith(prefix) and reads(name) for prefix, reads in readers.items()
        ), name


def test_no_name_is_excused_that_nobody_sets(files: Any) -> None:
    assert not set(OTHERS) - {name for _, name in named(files)}
