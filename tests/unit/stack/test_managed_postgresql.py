"""Addresses as providers of PostgreSQL hand them out: what libpq understands reaches Prefect's driver too."""

import asyncio
import inspect
import os
import ssl
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import make_url

from flows.stack.databases import databases
from flows.stack.parts import part_environment, parts
from flows.stack.postgres import ready_databases
from flows.stack.settings import StackSettings
from tasks.home import Home

ASK = """
import asyncio
from prefect.server.database import provide_database_interface
from sqlalchemy import text


async def main():
    async with (await provide_database_interface().engine()).connect() as connection:
        print((await connection.execute(text("SELECT current_setting('application_name')"))).scalar())


asyncio.run(main())
"""


@pytest.fixture
def settings(tmp_path: Path) -> StackSettings:
    return StackSettings(project=tmp_path)


@pytest.mark.parametrize(
    ("query", "variables"),
    [
        (
            "sslmode=verify-full&sslrootcert=/etc/ssl/rds+ca.pem",
            {"PGSSLROOTCERT": "/etc/ssl/rds+ca.pem"},
        ),
        (
            "sslmode=verify-full&sslrootcert=system",
            {"PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_ENABLED": "true"},
        ),
        ("sslmode=require&channel_binding=require", {}),
        (
            "application_name=x&connect_timeout=5&target_session_attrs=read-write",
            {"PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_APPLICATION_NAME": "x"},
        ),
        (
            "sslcert=/a.crt&sslkey=/a.key&ssl_min_protocol_version=TLSv1.3&gssencmode=disable",
            {
                "PGSSLCERT": "/a.crt",
                "PGSSLKEY": "/a.key",
                "PGSSLMINPROTOCOLVERSION": "TLSv1.3",
            },
        ),
    ],
    ids=["rds", "system-roots", "neon", "named", "client-certificate"],
)
def test_an_address_of_a_managed_postgresql_is_one_for_prefect_s_driver_too(
    state: Home, query: str, variables: dict[str, str]
) -> None:
    found = databases(state, {"LORALINE_POSTGRES": f"postgresql://me:x@db.example?{query}"})
    assert found.prefect_variables == variables
    _, keywords = PGDialect_asyncpg().create_connect_args(make_url(found.prefect))
    inspect.signature(asyncpg.connect).bind(**keywords)
    # The variables are read by somebody.
    source = inspect.getsource(asyncpg.connect_utils)
    for name in variables:
        assert name in source or name.startswith("PREFECT_"), name
    # libpq, which is MLflow's driver, reads it as it was written.
    for address in (found.mlflow.replace("+psycopg", ""), found.lock, found.server):
        read = conninfo_to_dict(address)
        assert {it: read[it] for it in conninfo_to_dict(f"postgresql:///?{query}")} == (
            conninfo_to_dict(f"postgresql:///?{query}")
        )
    assert make_url(found.mlflow).query == conninfo_to_dict(f"postgresql:///?{query}")


def test_the_file_that_an_address_names_is_what_asyncpg_opens(
    state: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "not there.pem"
    url = f"postgresql://me:x@127.0.0.1:9?sslmode=verify-full&sslrootcert={file}"
    found = databases(state, {"LORALINE_POSTGRES": url})
    for name, value in found.prefect_variables.items():
        monkeypatch.setenv(name, value)
    _, keywords = PGDialect_asyncpg().create_connect_args(make_url(found.prefect))
    with pytest.raises(FileNotFoundError):
        asyncio.run(asyncpg.connect(**keywords))
    file.write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        asyncio.run(asyncpg.connect(**keywords))


def test_what_a_pooler_needs_reaches_prefect_s_server_on_postgresql_alone(
    state: Home, settings: StackSettings
) -> None:
    name = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_STATEMENT_CACHE_SIZE"
    environ = {name: "0", "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://else"}
    prefect = parts(settings)[0]
    for address, wanted in (("postgresql://me:x@db", "0"), ("", None)):
        where = databases(state, {"LORALINE_POSTGRES": address})
        found = part_environment(prefect, state, settings, where, environ)
        assert found.get(name) == wanted
        assert found["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == where.prefect


@pytest.mark.long
def test_prefect_s_server_connects_by_an_address_with_libpq_s_parameters(
    state: Home, settings: StackSettings, postgres: str, tmp_path: Path
) -> None:
    url = postgres.removesuffix("/postgres")
    where = databases(
        state,
        {"LORALINE_POSTGRES": f"{url}?sslmode=prefer&connect_timeout=5&application_name=x"},
    )
    ready_databases(where.server)
    environment = part_environment(parts(settings)[0], state, settings, where, os.environ)
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "x\n", done.stderr
