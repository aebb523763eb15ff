"""The servers of `loraline ui` and the embedded one: they start, schedule, share, and end."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import psutil
import pytest

from flows.server_lock import ServerLock
from tasks.home import Home
from tasks.stack import Server, running, write_stack
from tests.loopback import free_port

pytestmark = pytest.mark.long


@dataclass
class Ui:
    """A running `loraline ui`."""

    home: Home
    process: subprocess.Popen[str]
    prefect: str
    mlflow: str
    environment: dict[str, str]


def environment_for(folder: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return {
        **inherited,
        "HOME": str(folder / "user-home"),
        "LORALINE_HOME": str(folder / "state"),
    }


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """Both servers on free ports. The last test of this module ends them."""
    folder = tmp_path_factory.mktemp("ui")
    environment = environment_for(folder)
    home = Home(folder / "state")
    home.root.mkdir()
    # Left by servers that were killed.
    write_stack(home, {"prefect": Server("http://127.0.0.1:9/api", 2**22 + 1)})
    ports = free_port(), free_port()
    command = [sys.executable, "-P", "-m", "flows.cli", "ui"]
    process = subprocess.Popen(
        [*command, "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )
    try:
        deadline = time.monotonic() + 240
        while running(home, "mlflow") is None:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the servers did not start"
            time.sleep(0.2)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        yield Ui(home, process, f"{urls[0]}/api", urls[1], environment)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def loraline_ui(
    environment: dict[str, str], prefect_port: int, mlflow_port: int
) -> subprocess.CompletedProcess[str]:
    """A `loraline ui` that is expected to end by itself."""
    ports = ["--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port)]
    return subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", "ui", *ports],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def post(url: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(url, json=body, timeout=30)
    answer.raise_for_status()
    return answer.json()


def test_both_servers_answer_and_are_named_in_the_stack_file(ui: Ui) -> None:
    assert httpx.get(f"{ui.prefect}/health", timeout=30).json() is True
    assert httpx.get(f"{ui.mlflow}/health", timeout=30).text == "OK"
    stack = json.loads(ui.home.stack_file.read_text())
    assert stack["prefect"]["url"] == ui.prefect
    assert stack["mlflow"]["url"] == ui.mlflow
    assert psutil.pid_exists(stack["prefect"]["pid"])
    # The page in the browser asks this server, and not the default port.
    page = f"{ui.prefect.removesuffix('/api')}/ui-settings"
    assert urljoin(page, httpx.get(page, timeout=30).json()["api_url"]) == ui.prefect


def test_a_started_server_really_schedules(ui: Ui) -> None:
    """With SQLAlchemy 2.1 the scheduler of Prefect 3.8 fails and nobody is told."""
    flow = post(f"{ui.prefect}/flows/", {"name": "nightly"})
    schedule = {"schedule": {"cron": "0 2 * * *", "timezone": "UTC"}, "active": True}
    deployment = post(
        f"{ui.prefect}/deployments/",
        {"name": "nightly", "flow_id": flow["id"], "schedules": [schedule]},
    )
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    deadline = time.monotonic() + 60
    while (count := post(f"{ui.prefect}/flow_runs/count", wanted)) == 0:
        assert time.monotonic() < deadline, "no run was scheduled within a minute"
        time.sleep(0.5)
    assert count > 1


def test_a_run_on_this_home_uses_these_servers(ui: Ui) -> None:
    code = (
        "from flows.connection import prefect_connection\n"
        "from tasks.home import home\n"
        "from tasks.tracking import tracking_uri\n"
        "with prefect_connection(home(), 'a test', print) as connection:\n"
        "    print(connection.kind, connection.url, tracking_uri(home()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=ui.environment,
        cwd=ui.home.root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"stack {ui.prefect} {ui.mlflow}\n"


def test_a_second_ui_is_told_where_the_first_one_is(ui: Ui) -> None:
    done = loraline_ui(ui.environment, free_port(), free_port())
    assert done.returncode == 2
    assert "already running" in done.stderr
    assert ui.mlflow in done.stderr


def test_beside_a_stack_the_pages_are_named_with_what_really_ends_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cli import main

    home = Home(tmp_path / "state")
    home.root.mkdir()
    # A part that has just died comes back at its address: it is named all the same.
    pages: dict[Any, str] = {"prefect": "http://127.0.0.1:9/api", "mlflow": "http://127.0.0.1:19"}
    write_stack(home, {name: Server(url, os.getpid(), True) for name, url in pages.items()})
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    assert main(["ui"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["Prefect  http://127.0.0.1:9", "MLflow   http://127.0.0.1:19"]
    assert "`loraline down` ends it" in said.err
    assert "Ctrl-C" not in said.err


def test_a_taken_port_is_named_with_the_way_out(ui: Ui, tmp_path: Path) -> None:
    port = int(ui.mlflow.rpartition(":")[2])
    done = loraline_ui(environment_for(tmp_path), free_port(), port)
    assert done.returncode == 2
    assert f"Port {port}" in done.stderr
    assert "--mlflow-port" in done.stderr


def test_ctrl_c_ends_both_servers_and_removes_the_stack_file(ui: Ui) -> None:
    family = psutil.Process(ui.process.pid).children(recursive=True)
    assert len(family) >= 2
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert not ui.home.stack_file.exists()
    lock = ServerLock(ui.home)
    assert lock.acquire("the next one")
    lock.release()
    # Nothing of Prefect's or MLflow's lies beside the state.
    assert sorted(p.name for p in ui.home.root.parent.iterdir()) == ["state"]


EMBEDDED = """
import os, sys, time
from pathlib import Path
import httpx
from flows.connection import prefect_connection
from tasks.home import home

state = home()
state.prepare()
with prefect_connection(state, "loraline run small.yaml", print) as connection:
    from prefect import flow, task

    @task
    def double(value):
        return 2 * value

    @flow
    def small():
        return double(21)

    assert small() == 42
    # A body without a type, which a browser sends for any page.
    for origin, code in (("https://evil.example.com", 403), (connection.url.removesuffix("/api"), 200)):
        asked = {"Origin": origin}
        answer = httpx.post(f"{connection.url}/flows/filter", content=b"{}", headers=asked)
        assert answer.status_code == code, answer.text
    Path(sys.argv[1]).write_text(connection.url)
    while len(sys.argv) > 2:
        time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory whose state the tests below use: its database is created once."""
    return tmp_path_factory.mktemp("embedded")


def test_the_embedded_server_keeps_the_run_and_ends_with_it(folder: Path) -> None:
    environment = environment_for(folder)
    done = subprocess.run(
        [sys.executable, "-P", "-c", EMBEDDED, str(folder / "url")],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # The last log lines reached the server before it ended.
    assert "Error logging to API" not in done.stderr
    assert not (folder / "user-home").exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get((folder / "url").read_text(), timeout=5)
    with sqlite3.connect(folder / "state" / "prefect" / "prefect.db") as database:
        states = database.execute("select state_type from task_run").fetchall()
        logs = database.execute("select message from log").fetchall()
    assert states == [("COMPLETED",)]
    assert any("Finished in state Completed" in message for (message,) in logs)


def test_the_embedded_server_forgets_what_ended_long_ago(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", EMBEDDED, str(tmp_path / "url")]
    subprocess.run(command, env=environment_for(folder), cwd=folder, check=True)
    (tmp_path / "url").unlink()
    database = folder / "state" / "prefect" / "prefect.db"
    with sqlite3.connect(database) as aging:
        aging.execute("update flow_run set end_time = datetime('now', '-91 days')")
        old = {run for (run,) in aging.execute("select id from flow_run")}
    process = subprocess.Popen(
        [*command, "stay"],
        env=environment_for(folder),
        cwd=folder,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_for(tmp_path / "url", process)
        deadline, left = time.monotonic() + 60, old
        while left and time.monotonic() < deadline:
            time.sleep(0.2)
            with sqlite3.connect(database) as reading:
                left = old & {run for (run,) in reading.execute("select id from flow_run")}
                logs = {run for (run,) in reading.execute("select flow_run_id from log")}
            left |= old & logs
        assert old
        assert not left
        # The run that it was started for is there.
        with sqlite3.connect(database) as reading:
            assert reading.execute("select count(*) from flow_run").fetchone() == (1,)
    finally:
        process.kill()
        process.wait()


def test_the_embedded_server_dies_with_a_run_that_is_killed_and_ui_waits_for_that(
    folder: Path, tmp_path: Path
) -> None:
    environment = environment_for(folder)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", EMBEDDED, str(tmp_path / "url"), "stay"],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(tmp_path / "url", process)
    server = psutil.Process(process.pid).children()
    assert len(server) == 1
    # Two servers on one file: refused, with the holder's name.
    second = loraline_ui(environment, free_port(), free_port())
    assert second.returncode == 2
    assert "loraline run small.yaml" in second.stderr
    assert str(process.pid) in second.stderr
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(server, timeout=20)
    assert not alive
    lock = ServerLock(Home(folder / "state"))
    assert lock.acquire("the next run")
    lock.release()
