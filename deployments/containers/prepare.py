"""What must be there before a server of the containers starts: its database at today's schema, its bucket.

Run as `python -P prepare.py [prefect] [mlflow]`, without a name for both; a second time it changes nothing. PostgreSQL is
named by PGHOST, PGPORT, PGUSER and PGPASSWORD, the bucket by MLFLOW_ARTIFACTS_DESTINATION, its store by
AWS_ENDPOINT_URL_S3 and AWS_*.
"""

import os
import subprocess
import sys
from urllib.parse import quote, urlsplit

import boto3
from botocore.exceptions import ClientError

from flows.stack.postgres import ready_databases
from tasks.advisory_lock import AdvisoryLock
from tasks.errors import LoralineError, StageFailed

SERVERS = ("prefect", "mlflow")
LOCK_SECONDS = 600.0
"""Longest wait for another one that prepares; a migration of a database of years takes minutes."""


def main(servers: list[str]) -> int:
    """Prepare for these servers; returns the exit code."""
    if unknown := set(servers) - set(SERVERS):
        print(f"error: {', '.join(sorted(unknown))}: known are {', '.join(SERVERS)}")
        return 2
    try:
        return _prepare(servers or list(SERVERS))
    except LoralineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _prepare(servers: list[str]) -> int:
    user, host = quote(os.environ["PGUSER"], safe=""), os.environ["PGHOST"]
    # The password stays in PGPASSWORD, which the driver reads.
    server = f"postgresql://{user}@{host}:{os.environ.get('PGPORT', '5432')}"
    lock = AdvisoryLock(f"{server}/postgres", "loraline prepare")
    if not lock.acquire(LOCK_SECONDS):
        raise StageFailed(f"Another one has prepared {host} for {LOCK_SECONDS:.0f} s. Look at it.")
    try:
        for name in ready_databases(server):
            print(f"Created the database {name}.", flush=True)
        for name in servers:
            print(f"Bringing {name}'s database to the installed version.", flush=True)
            # Both libraries read their settings when they are imported: a process each.
            done = subprocess.run([sys.executable, "-P", "-m", "flows.stack.migrating", name])
            if done.returncode:
                return done.returncode
    finally:
        lock.close()
    if "mlflow" in servers:
        ready_bucket(os.environ["MLFLOW_ARTIFACTS_DESTINATION"])
    return 0


def ready_bucket(address: str) -> None:
    """Create the bucket of `s3://bucket/prefix` where it is missing; other stores are left alone."""
    parts = urlsplit(address)
    if parts.scheme != "s3":
        return
    client = boto3.client("s3")
    try:
        client.head_bucket(Bucket=parts.netloc)
    except ClientError as error:
        # Forbidden is an answer, too: it is there, and its owner lets nobody look at it.
        if error.response["Error"]["Code"] == "403":
            return
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        region = client.meta.region_name
        # Amazon's first region is the one that must not be named.
        where = {} if region in (None, "us-east-1") else {"LocationConstraint": region}
        client.create_bucket(
            Bucket=parts.netloc, **({"CreateBucketConfiguration": where} if where else {})
        )
        print(f"Created the bucket {parts.netloc}.", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
