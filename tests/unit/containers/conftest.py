"""The container files as data: what an engine would make of them, where there is none."""

import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Files:
    """Reads what is in the repository's root and in `deployments/`."""

    root = Path(__file__).resolve().parents[3]
    secrets: Mapping[str, str] = {
        "LORALINE_POSTGRES_PASSWORD": "canary-of-postgres",
        "LORALINE_S3_SECRET": "canary-of-the-store",
        "LORALINE_PREFECT_PASSWORD": "admin:canary-of-prefect",
        "LORALINE_MLFLOW_PASSWORD": "canary-of-mlflow",
        "LORALINE_MLFLOW_SECRET_KEY": "canary-of-sessions",
    }
    """What `.env` must hold."""

    def text(self, name: str) -> str:
        """A file's text, without the lines that are comments."""
        lines = (self.root / name).read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if not line.lstrip().startswith("#"))

    def compose(self, *more: str, values: Mapping[str, str] | None = None) -> dict[str, Any]:
        """`compose.yaml`, and what further files set for its services, with the secrets and `values`.

        Raises: KeyError with Compose's message for a variable with neither a value nor a default.
        """
        launcher = {"DOCKER_GROUP": "999", "LORALINE_PROJECT_FOLDER": "/srv/adapters"}
        values = {
            **self.secrets,
            **(launcher if "deployments/compose/docker-pool.yaml" in more else {}),
            **(values or {}),
        }
        found: dict[str, Any] = {}
        services: dict[str, Any] = {}
        for name in ("compose.yaml", *more):
            document = interpolated(yaml.safe_load(self.text(name)), values)
            found = {**document, **found}
            for service, settings in document["services"].items():
                services[service] = {**services.get(service, {}), **settings}
        return {**found, "services": services}

    def kubernetes(self, *folders: str) -> list[dict[str, Any]]:
        """All resources below these folders of `deployments/kubernetes`, less the example of secrets."""
        found = []
        for folder in folders or ("stack", "job-pool"):
            for path in sorted((self.root / "deployments/kubernetes" / folder).glob("*.yaml")):
                if path.name not in ("kustomization.yaml", "secrets.example.yaml"):
                    text = path.read_text(encoding="utf-8")
                    found += [it for it in yaml.safe_load_all(text) if it]
        return found

    def dockerfile(self) -> list[tuple[str, str, str]]:
        """(stage, instruction, arguments) of each step, continued lines joined."""
        steps, stage = [], ""
        for line in self.text("Dockerfile").replace("\\\n", " ").splitlines():
            if line.strip():
                instruction, _, arguments = line.strip().partition(" ")
                if instruction == "FROM":
                    stage = arguments.split()[-1]
                steps.append((stage, instruction, " ".join(arguments.split())))
        return steps

    def lineage(self, target: str) -> list[str]:
        """The stages that an image is built on, the first one first."""
        below = {
            stage: arguments.split()[0]
            for stage, instruction, arguments in self.dockerfile()
            if instruction == "FROM"
        }
        line = [target]
        while below[line[0]] in below:
            line.insert(0, below[line[0]])
        return line

    def image_environment(self, target: str) -> dict[str, str]:
        """What the `ENV` instructions of an image set."""
        found: dict[str, str] = {}
        for stage in self.lineage(target):
            for of, instruction, arguments in self.dockerfile():
                if of == stage and instruction == "ENV":
                    for pair in arguments.split():
                        name, _, value = pair.partition("=")
                        found[name] = value
        return found

    def pins(self, name: str) -> dict[str, str]:
        """Distribution -> version, of a lock file."""
        pairs = [line.split("==") for line in self.text(name).splitlines() if "==" in line]
        return {canonicalize_name(name): version.strip() for name, version in pairs}

    def project(self) -> dict[str, Any]:
        """The table `project` of pyproject.toml."""
        whole = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        return dict(whole["project"])

    def tool(self, name: str) -> str:
        """A program of this environment; the test is skipped where it is missing."""
        path = Path(sys.executable).with_name(name)
        if not path.is_file():
            pytest.skip(f"{name} is not installed: pip install 'loraline[test]'")
        return str(path)


def interpolated(value: Any, values: Mapping[str, str]) -> Any:
    """Compose's `${NAME}`, `${NAME:-default}` and `${NAME:?message}` in each text of a document.

    Raises: KeyError.
    """

    def found(match: re.Match[str]) -> str:
        name, sign, rest = match.groups()
        if values.get(name):
            return values[name]
        if sign == "-":
            return str(rest)
        raise KeyError(f"{name}: {rest}")

    if isinstance(value, dict):
        return {key: interpolated(it, values) for key, it in value.items()}
    if isinstance(value, list):
        return [interpolated(it, values) for it in value]
    return _VARIABLE.sub(found, value) if isinstance(value, str) else value


@pytest.fixture(scope="session")
def files() -> Files:
    """The container files."""
    return Files()
