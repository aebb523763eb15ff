"""Canaries: secrets of every kind are used by real runs, and found nowhere afterwards."""

import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.hub import A, Repository, running_hub
from tests.running_stack import running_stack, until
from tests.webhook import webhook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]
WORD = "canary7d1f"
"""In every secret of these tests."""
RECIPE = """\
name: canary
base: {base}
dataset:
  sources:
    - type: sql
      name: shop
      url_variable: SHOP_URL
      query: SELECT id, prompt, completion FROM answers ORDER BY id
  split: {{test: 0.2, salt: canary}}
tokenization: {{max_length: 256, long_rows: drop}}
training:
  peft_config: {{r: 2}}
  training_config: {{max_steps: 2, per_device_train_batch_size: 2}}
evaluation:
  max_new_tokens: 4
  bootstrap_samples: 100
  gate: []
  judge:
    url: http://127.0.0.1:9/v1
    model: judge
    key_variable: JUDGE_KEY
    retries: 0
    max_missing_share: 1
promotion: {{policy: automatic}}
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Path:
    """A recipe whose rows lie in a database that is opened with a password."""
    found = tmp_path_factory.mktemp("secrets")
    (found / "recipes").mkdir()
    (found / "recipes" / "canary.yaml").write_text(RECIPE.format(base=starter))
    with sqlite3.connect(found / "shop.sqlite") as database:
        database.execute("create table answers (id integer, prompt text, completion text)")
        database.executemany(
            "insert into answers values (?, ?, ?)",
            [
                (n, f"What is the price of item {n * 37}?", f"Item {n * 37} costs {n % 9} euros.")
                for n in range(60)
            ],
        )
    return found


def address(folder: Path) -> str:
    """SQLite has no passwords, and takes one among the options of its address."""
    return f"sqlite:///file:{folder / 'shop.sqlite'}?mode=ro&uri=true&password={WORD}-sql"


@pytest.fixture(scope="module")
def judge() -> Iterator[tuple[str, set[str | None]]]:
    """The override that names a judge, and the keys that it was shown."""
    keys: set[str | None] = set()

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            keys.add(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            verdict = {"choices": [{"message": {"role": "assistant", "content": "7"}}]}
            self.wfile.write(json.dumps(verdict).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"evaluation.judge.url=http://127.0.0.1:{server.server_port}/v1", keys
    server.shutdown()
    server.server_close()


def places(folder: Path) -> list[str]:
    """Files below the folder whose bytes hold a canary; nothing is passed over."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and WORD.encode() in path.read_bytes():
            found.append(str(path.relative_to(folder)))
    return found


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store that speaks S3; its client credentials are canaries."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "loraline",
        "AWS_SECRET_ACCESS_KEY": f"{WORD}-s3",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    found = boto3.resource("s3").Bucket("shared")
    found.create()
    yield found
    server.stop()


def test_a_secret_of_the_environment_is_used_and_appears_nowhere(
    folder: Path, bucket: Any, loraline: Any, judge: tuple[str, set[str | None]]
) -> None:
    judged_by, keys = judge
    cli = loraline(folder)
    secrets = {
        "SHOP_URL": address(folder),
        "JUDGE_KEY": f"{WORD}-judge",
        "LORALINE_STORE": "s3://shared/store",
        # Nobody listens there: what is not delivered waits in the outbox, and is warned of.
        "LORALINE_WEBHOOKS": f"http://ada:{WORD}-user@127.0.0.1:9/{WORD}-path?token={WORD}-query",
        "LORALINE_WEBHOOK_SECRET": f"{WORD}-signature",
        # As chatty as can be.
        "LORALINE_DEBUG": "1",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    said = []

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = cli(
            "run", "recipes/canary.yaml", "--set", judged_by, *arguments, **{**secrets, **more}
        )
        said.append(done.stdout + done.stderr)
        return done

    registered = run()
    assert registered.returncode == 0, registered.stderr[-3000:]
    # The canaries were there to be found: rows, the store and the receiver were asked for with them.
    assert keys == {f"Bearer {WORD}-judge"}
    assert list((folder / ".loraline" / "outbox").glob("[0-9]*.json"))
    assert any(it.key.startswith("store/training/") for it in bucket.objects.all())
    # The ways in which it can go wrong quote what they know.
    nowhere = "dataset.sources.0.query=SELECT prompt, completion FROM nowhere ORDER BY 1"
    failed = run("--set", nowhere)
    assert failed.returncode == 2, failed.stderr[-3000:]
    assert "no such table" in failed.stderr
    broken = {"SHOP_URL": f"postgresql+psycopg://ada:{WORD}-pg@127.0.0.1:9/shop?sslcert={WORD}"}
    # Nobody listens there: an outage, and no mistake of the recipe.
    assert run(**broken).returncode == 1
    assert run(SHOP_URL=f"no address, and {WORD}").returncode == 2
    assert run(SHOP_URL=f"nothing+known://ada:{WORD}@127.0.0.1/shop").returncode == 2
    assert run(MLFLOW_TRACKING_URI=f"http://ada:{WORD}-mlflow@127.0.0.1:9").returncode == 1
    assert run(LORALINE_STORE=f"ftp://ada:{WORD}-ftp@127.0.0.1:9/store", OMP_NUM_THREADS="1")
    for command in (("check", "recipes/canary.yaml"), ("versions", "canary"), ("audit", "canary")):
        done = cli(*command, **secrets)
        said.append(done.stdout + done.stderr)

    assert places(folder) == []
    assert not [text for text in said if WORD in text]
    kept = [it.key for it in bucket.objects.all() if WORD.encode() in it.get()["Body"].read()]
    assert kept == []


def test_a_secret_of_a_block_is_used_and_appears_nowhere(
    folder: Path, loraline: Any, standing_server: Any, judge: tuple[str, set[str | None]]
) -> None:
    """A deployment's run, whose worker knows the secret from Prefect alone."""
    judged_by, keys = judge
    keys.clear()
    server = standing_server(folder)
    script = (
        "import sys\n"
        "from prefect.blocks.system import Secret\n"
        "from prefect.client.orchestration import get_client\n"
        "from prefect.flows import EntrypointType\n"
        "from flows.retrain import retrain\n"
        "for name, value in zip(('shop-url', 'judge-key'), sys.stdin.read().split(), strict=True):\n"
        "    Secret(value=value).save(name)\n"
        "retrain.to_deployment('retrain', entrypoint_type=EntrypointType.MODULE_PATH).apply()\n"
        "with get_client(sync_client=True) as client:\n"
        "    there = client.read_deployment_by_name('retrain/retrain')\n"
        "    given = {'recipe': sys.argv[1], 'overrides': ['name=blocks', *sys.argv[2:]]}\n"
        "    print(client.create_flow_run_from_deployment(there.id, parameters=given).id)\n"
    )
    environment = {
        **loraline(folder).environment(PREFECT_API_URL=server.url),
        "PYTHONPATH": str(ROOT),
        "LORALINE_WEBHOOKS": f"http://127.0.0.1:9/{WORD}-path",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    environment.pop("SHOP_URL", None)

    def execute(*overrides: str) -> str:
        created = subprocess.run(
            [sys.executable, "-c", script, str(folder / "recipes" / "canary.yaml"), *overrides],
            input=f"{address(folder)} {WORD}-judge-block",
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert created.returncode == 0, created.stderr[-3000:]
        run_id = created.stdout.split()[-1]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "prefect", "flow-run", "execute", run_id],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert WORD not in done.stdout + done.stderr
        return str(server.api.ask("GET", f"/flow_runs/{run_id}")["state"]["name"])

    assert execute(judged_by) == "Completed"
    assert keys == {f"Bearer {WORD}-judge-block"}
    server.stop()
    assert places(folder) == []


def test_no_part_of_a_stack_keeps_a_secret_that_its_runs_used(
    folder: Path,
    tmp_path: Path,
    starter: Path,
    loraline: Any,
    judge: tuple[str, set[str | None]],
) -> None:
    """Servers, workers and watchdog have them all in their environments; the judge's key is in a block."""
    judged_by, keys = judge
    keys.clear()
    recipe = folder / "recipes" / "hub.yaml"
    recipe.write_text(RECIPE.format(base="team/base").replace("name: canary", "name: hub"))
    with running_hub() as hub, webhook() as (receiver, told):
        files = {path.name: path.read_bytes() for path in starter.iterdir()}
        hub.models["team/base"] = Repository({A: files})
        hidden = receiver.replace("://", f"://ada:{WORD}-user@")
        secrets = {
            "SHOP_URL": address(folder),
            # The driver quotes what it does not know.
            "WRONG_URL": f"postgresql+psycopg://ada:{WORD}-pg@127.0.0.1:9/shop?sslmode={WORD}-mode",
            "HF_TOKEN": f"{WORD}-hub",
            "LORALINE_WEBHOOKS": f"{hidden}{WORD}-path?token={WORD}-query",
            "LORALINE_WEBHOOK_SECRET": f"{WORD}-signature",
        }
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "LORALINE_DEBUG": "1",
            "PREFECT_LOGGING_LEVEL": "DEBUG",
        }
        with running_stack(loraline(folder), **secrets, **settings) as stack:
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "import sys; from prefect.blocks.system import Secret; "
                    "Secret(value=sys.stdin.read()).save('judge-key')",
                ],
                input=f"{WORD}-judge-block",
                env=stack.cli.environment(PREFECT_API_URL=stack.api.url),
                cwd=folder,
                text=True,
                check=True,
                timeout=300,
            )
            overrides = [judged_by]
            used = stack.start("retrain", {"recipe": str(recipe), "overrides": overrides})
            state = stack.end_of(used, 900)
            assert state["type"] == "COMPLETED", state
            overrides += ["name=wrong", "dataset.sources.0.url_variable=WRONG_URL"]
            wrong = stack.start("retrain", {"recipe": str(recipe), "overrides": overrides})
            state = stack.end_of(wrong)
            assert state["type"] == "FAILED", state
            assert 'invalid sslmode value: "***"' in state["message"]
            alerts = until(lambda: [it for it in told if it["data"].get("flow_run") == wrong], 60)
            said = [stack.cli("status", **secrets), stack.cli("status", "--json", **secrets)]
    # The canaries were there to be found.
    assert keys == {f"Bearer {WORD}-judge-block"}
    assert f"Bearer {WORD}-hub" in hub.authorizations
    assert [it["data"]["kind"] for it in alerts] == ["failed"]

    assert WORD not in json.dumps(told)
    assert not [it for it in said if WORD in it.stdout + it.stderr]
    # Logs, artifacts, what the supervisor reads, both databases; then the caches beside the home.
    assert places(folder) == []
    assert places(tmp_path) == []


def test_the_word_would_be_found(folder: Path) -> None:
    """The search itself can fail."""
    planted = folder / ".loraline" / "planted.db"
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(b"\x00\x01" + WORD.encode() + b"\xff")
    try:
        assert places(folder) == [".loraline/planted.db"]
    finally:
        planted.unlink()
