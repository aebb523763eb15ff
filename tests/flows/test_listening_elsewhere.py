"""Servers that listen to other machines serve their pages under each of their names, and under no other."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urljoin

import httpx
import psutil
import pytest

from flows.stack.databases import databases
from flows.stack.exposure import MLFLOW_PASSWORDS, PREFECT_PASSWORD, is_loopback
from flows.stack.migrating import migrate
from flows.stack.own_names import HOSTS, ORIGINS
from flows.stack.parts import part_environment, parts
from flows.stack.settings import StackSettings
from tasks.home import Home
from tasks.stack import answers
from tests.loopback import free_port
from tests.running_stack import until


def own_address() -> str:
    """An address of this machine that is not its loopback; empty where it has none."""
    found = (it for addresses in psutil.net_if_addrs().values() for it in addresses)
    ours = (it.address for it in found if it.family == socket.AF_INET)
    return next((it for it in ours if not is_loopback(it)), "")


ADDRESS = own_address()
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.allow_hosts(["127.0.0.1", *filter(None, [ADDRESS])]),
    pytest.mark.skipif(not ADDRESS, reason="this machine has no address but its loopback"),
    pytest.mark.skipif(find_spec("flask_wtf") is None, reason="needs pip install 'mlflow[auth]'"),
]
PASSWORDS = {
    PREFECT_PASSWORD: "operator:not-so-secret",
    **dict.fromkeys(MLFLOW_PASSWORDS, "not-so-secret"),
    "MLFLOW_TRACKING_USERNAME": "admin",
    HOSTS: "mlflow.example.com",
    ORIGINS: "https://mlflow.example.com",
    # Of another server: our page must not speak with that one.
    "PREFECT_UI_API_URL": "http://127.0.0.1:9/api",
}


@dataclass
class Elsewhere:
    """Where both servers listen, asked by the address under which another machine finds this one."""

    prefect_port: int
    mlflow_port: int

    def search(self, host: str, origin: str) -> int:
        """The status with which MLflow answers its own page's search for runs."""
        answer = httpx.post(
            f"http://{ADDRESS}:{self.mlflow_port}/ajax-api/2.0/mlflow/runs/search",
            json={"experiment_ids": ["0"]},
            headers={"Host": host, "Origin": origin},
            auth=("admin", "not-so-secret"),
            timeout=60,
        )
        return answer.status_code


def _ended(server: "subprocess.Popen[bytes]") -> None:
    with suppress(subprocess.TimeoutExpired):
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """Both servers as `loraline up --host 0.0.0.0` starts them."""
    folder: Path = tmp_path_factory.mktemp("elsewhere").resolve()
    home = Home(folder / "home")
    home.prepare()
    settings = StackSettings(
        project=folder, host="0.0.0.0", prefect_port=free_port(), mlflow_port=free_port()
    )
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in PASSWORDS.items():
            patch.setenv(name, value)
        where = databases(home, {})
        migrate(home, settings, where)
        for part in parts(settings)[:2]:
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", part.module, *part.arguments],
                env=part_environment(part, home, settings, where, os.environ),
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(server.kill)
            stack.callback(partial(_ended, server))
            stack.callback(server.terminate)
        for part in parts(settings)[:2]:
            until(partial(answers, part.health), 240)
        yield Elsewhere(settings.prefect_port, settings.mlflow_port)


@pytest.mark.parametrize("name", ["", "prefect.example.com"])
def test_prefects_page_asks_the_server_that_it_came_from(elsewhere: Elsewhere, name: str) -> None:
    address = f"http://{ADDRESS}:{elsewhere.prefect_port}/"
    headers = {"Host": name} if name else {}
    given = httpx.get(f"{address}ui-settings", headers=headers, timeout=60).json()["api_url"]
    page = f"https://{name}/" if name else address
    assert urljoin(page, given) == f"{page}api"
    assert answers(f"{urljoin(address, given)}/health")


def test_mlflows_page_works_under_each_name_of_the_machine_and_a_given_one(
    elsewhere: Elsewhere,
) -> None:
    for name in (ADDRESS, os.uname().nodename.lower(), "127.0.0.1", "localhost"):
        host = f"{name}:{elsewhere.mlflow_port}"
        assert elsewhere.search(host, f"http://{host}") == 200, name
    assert elsewhere.search("mlflow.example.com", "https://mlflow.example.com") == 200
    # Through a tunnel.
    assert elsewhere.search("127.0.0.1:8000", "http://127.0.0.1:8000") == 200


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("elsewhere.example.com", ""),
        ("10.example.com", ""),
        ("mlflow.example.com", "https://elsewhere.example.com"),
    ],
)
def test_mlflow_answers_no_other_name_and_no_other_page(
    elsewhere: Elsewhere, host: str, origin: str
) -> None:
    assert elsewhere.search(host, origin) == 403
