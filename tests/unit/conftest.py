"""A store beyond this machine: an S3-compatible server on loopback."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest


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
