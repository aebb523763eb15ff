"""Servers of other parties on loopback: a Hub, a store that speaks S3, a PostgreSQL."""

import logging
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub, running_hub

DEBIANS = Path("/usr/lib/postgresql").glob("*/bin/initdb")
"""Of each version that is installed; elsewhere the programs are on PATH."""
POSTGRES = max(
    DEBIANS,
    key=lambda it: float(it.parts[-3]),
    default=Path(shutil.which("initdb") or "/usr/lib/postgresql/initdb"),
).parent


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with nothing on it; this process and those that it starts ask it, and their cache is empty."""
    from huggingface_hub import constants

    with running_hub() as found:
        cache = tmp_path / "hub-cache"
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, value in {
            "HF_ENDPOINT": found.url,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": "0",
        }.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture(scope="session")
def s3_stand_in() -> Iterator[str]:
    """The address of the server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def shared_bucket(s3_stand_in: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `shared`; where it is and the credentials are in the environment, as in real life."""
    import boto3
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_stand_in,
        "AWS_ACCESS_KEY_ID": "loraline-test",
        "AWS_SECRET_ACCESS_KEY": "loraline-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = boto3.resource("s3").Bucket("shared")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server of its own on a free loopback port."""
    if not (POSTGRES / "initdb").is_file():
        pytest.skip("no server programs of PostgreSQL (Debian: apt-get install postgresql)")
    # Not below pytest's own folder: that one is closed to other users, and too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="loraline-postgres-"))
    # The server refuses to run as root, and its folder must be its user's.
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody", "nogroup")
    data = folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run(
            [*as_user, *command], capture_output=True, text=True, cwd=folder, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run(str(POSTGRES / "initdb"), "-D", str(data), "-U", "tester", "-A", "trust", "--no-sync")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    control = [str(POSTGRES / "pg_ctl"), "-D", str(data), "-w", "-t", "100"]
    # Without a log file the server would keep our pipes open.
    run(*control, "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://tester:geheim@127.0.0.1:{port}/postgres"
    finally:
        run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)
