"""A container that is stopped: what its supervisor ends, in which order, and what is known of it afterwards."""

import configparser
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.stack.leftovers import STACK
from flows.stack.settings import folder
from flows.stack.stops import was_cut_off
from tasks.home import Home
from tests.running_stack import until

WORKER = """
import pathlib, signal, sys, time
from datetime import UTC, datetime
def end(*_):
    pathlib.Path(sys.argv[1]).write_text(datetime.now(UTC).isoformat())
    sys.exit()
signal.signal(signal.SIGTERM, end)
time.sleep(600)
"""
"""Tells when it was ended, as the state of a run does that was cut off."""


def test_a_run_that_the_stop_of_a_container_cuts_off_did_not_crash_by_any_fault_of_its_own(
    files: Any, tmp_path: Path
) -> None:
    state, ended = Home(tmp_path / "home"), tmp_path / "ended"
    (tmp_path / "worker.py").write_text(WORKER)
    found = configparser.ConfigParser(interpolation=None)
    names = ("watchdog.conf", "registry.conf", "trainings.conf")
    found.read(files.root / "deployments/containers" / it for it in names)
    for section in ("include", "unix_http_server", "rpcinterface:supervisor", "supervisorctl"):
        found.remove_section(section)
    found["supervisord"]["pidfile"] = str(tmp_path / "pid")
    for name in found.sections():
        if name == "program:watchdog":
            found[name]["command"] = found[name]["command"].replace("python", sys.executable)
        elif name.startswith("program:"):
            found[name]["command"] = f"{sys.executable} {tmp_path / 'worker.py'} {ended}"
    with (tmp_path / "supervisord.conf").open("w") as file:
        found.write(file)
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(tmp_path / "supervisord.conf")],
        env={
            **{name: value for name, value in os.environ.items() if name != STACK},
            **state.environment(),
            "PYTHONPATH": str(files.root),
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
        },
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: (folder(state) / "watchdog.json").exists(), 240)
        started = datetime.now(UTC).isoformat()
    finally:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(timeout=240)
    assert was_cut_off(state, {"start_time": started, "end_time": ended.read_text()})
