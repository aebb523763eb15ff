"""What every test may lean on: a state folder of its own, and a base model so small that it costs nothing."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell that starts pytest in the background lets it ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any library reads them. Tests that run side by side share the cores: threads beyond them spin.
side_by_side = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if side_by_side > 1:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // side_by_side)))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "LORALINE_BASE", "LORALINE_HOME"):
    os.environ.pop(name, None)


def pytest_configure(config: pytest.Config) -> None:
    """A home of its own for Prefect, which looks for it once: when the tests' modules import it."""
    folder = tempfile.mkdtemp(prefix="loraline-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["PREFECT_HOME"] = folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State, caches and HOME of each test lie in its own temporary folder."""
    from tasks.home import Home

    home = Home(tmp_path / "loraline-home")
    for key, value in home.environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("HOME", str(tmp_path / "user-home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))


@pytest.fixture(autouse=True)
def _nothing_waits_for_a_server_of_before() -> None:
    """What a test left for a server that is gone holds up no later test's deliveries, which go in order."""
    from tasks import late

    late._late._waiting.clear()


@pytest.fixture(scope="session")
def starter() -> Path:
    """The shipped base model."""
    return ROOT / "examples" / "starter"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Path:
    """A two-layer Phi-3 with hidden size 32, random weights and the starter's tokenizer, in fp32."""
    import torch
    from transformers import AutoConfig, Phi3Config, Phi3ForCausalLM

    folder = tmp_path_factory.mktemp("tiny-base")
    like = AutoConfig.from_pretrained(starter)
    torch.manual_seed(0)
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=like.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            original_max_position_embeddings=1024,
            bos_token_id=like.bos_token_id,
            eos_token_id=like.eos_token_id,
            pad_token_id=like.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        if (starter / name).is_file():
            shutil.copy(starter / name, folder / name)
    return folder


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """A test that starts processes must end them."""
    import psutil

    before = {p.pid for p in psutil.Process().children(recursive=True)}
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    left = [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    _, alive = psutil.wait_procs(left, timeout=5)
    assert not alive, f"left running: {[(p.pid, p.cmdline()[:6]) for p in alive]}"
