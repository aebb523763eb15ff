"""A model in parts: what the launch files say, what is refused, and FSDP2 on two gloo processes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from pydantic import ValidationError
from safetensors.torch import load_file

from tasks.base import Base
from tasks.errors import UserError
from tasks.training import checkpoints, starting, worker
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings
from tasks.training.spread import Spread

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
FILES = sorted((Path(starting.__file__).parent / "accelerate").glob("*.yaml"))
Job = Callable[..., TrainingJob]


def options() -> set[str]:
    """What `accelerate launch` knows by name; it takes any other key of a file and says nothing."""
    return {action.dest for action in launch_command_parser()._actions}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_knows_every_key_of_the_launch_files(file: Path) -> None:
    config = load_config_from_file(str(file))
    for section, prefix in (("fsdp_config", "fsdp_"), ("deepspeed_config", "")):
        for key in getattr(config, section) or {}:
            assert key.startswith(prefix), key
            assert key in options(), key
    inner = [
        key for key, value in yaml.safe_load(file.read_text()).items() if isinstance(value, dict)
    ]
    assert inner in ([], ["fsdp_config"], ["deepspeed_config"])


def test_a_key_that_accelerate_would_pass_over_is_seen() -> None:
    assert "fsdp_reshard_after_forward" in options()
    assert "fsdp_reshard_after_foward" not in options()


def launched(spread: Spread, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, str]]:
    """The launcher's arguments, and the environment that it gives the workers."""
    # The empty command would read `python` here as the script.
    argv = starting.worker_command("tasks.training.worker", Path("job.json"), spread)
    words = argv[argv.index("accelerate.commands.launch") + 1 :]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return arguments, prepare_multi_gpu_env(arguments)


def test_the_launcher_makes_fsdp_2_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import FullyShardedDataParallelPlugin

    arguments, environment = launched(Spread(2, sharding="fsdp2"), monkeypatch)
    assert (arguments.use_fsdp, arguments.multi_gpu, arguments.num_processes) == (True, False, 2)
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            if name.startswith(("FSDP_", "ACCELERATE_")):
                patch.setenv(name, value)
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not plugin.cpu_ram_efficient_loading
    assert environment["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.parametrize("stage", [2, 3])
def test_the_launcher_makes_zero_of_the_recipe(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "find_spec", lambda name: name)
    argv = starting.worker_command(
        "tasks.training.worker", Path("job.json"), Spread(2, sharding=f"zero{stage}")
    )
    words = argv[argv.index("accelerate.commands.launch") + 1 :]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (arguments.use_deepspeed, arguments.multi_gpu) == (True, False)
    assert arguments.zero_stage == stage
    assert arguments.gradient_accumulation_steps == "auto"
    assert arguments.deepspeed_multinode_launcher == "standard"


def test_without_deepspeed_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package `deepspeed` is not installed"):
        starting.worker_command("m", Path("job.json"), Spread(2, sharding="zero3"))
    starting.worker_command("m", Path("job.json"), Spread(2, sharding="fsdp2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_on_a_cpu_sharding_is_refused_before_anything_is_loaded(job: Job) -> None:
    with pytest.raises(UserError, match=r"sharding is fsdp2, and this machine has no GPU"):
        worker.train(job(processes=2, sharding="fsdp2", base=Path("/nowhere")))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"processes": 1}, "there is one. Raise `processes`"),
        ({"quantization": "nf4"}, "`quantization: nf4` has packed"),
        ({"peft_config": {"peft_type": "VERA"}}, "peft_type is VERA"),
        ({"peft_config": {"init_lora_weights": "pissa"}}, "no whole base to begin from"),
        ({"target_slices": {"qkv_proj": ["q"]}}, "`target_slices` tells apart"),
        ({"init_from": "champion"}, "`init_from: base`"),
    ],
)
def test_what_parts_cannot_do_is_refused_with_the_recipe(fields: Any, words: str) -> None:
    for sharding in ("fsdp2", "zero2", "zero3"):
        with pytest.raises(ValidationError, match=words):
            TrainingSettings(**{"processes": 2, "sharding": sharding, **fields})


def test_sharding_is_part_of_what_decides_the_adapter_and_its_absence_is_not() -> None:
    plain, parts = (
        TrainingSettings(processes=2, sharding=sharding).content() for sharding in ("none", "fsdp2")
    )
    assert parts == plain | {"sharding": "fsdp2"}
    assert "sharding" not in plain


def run(argv: list[str]) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parents[2]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_two_processes(job: TrainingJob) -> tuple[TrainingResult, list[dict[str, Any]]]:
    """The training by our launch file, and what its processes said."""
    job.working.mkdir(parents=True, exist_ok=True)
    path = job.working / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    argv = starting.worker_command("tasks.training.worker", path, Spread(2, sharding="fsdp2"))
    place = argv.index("--module")
    argv[place : place + 2] = [str(HERE / "sharded_worker.py")]
    lines = [line for line in run(argv).splitlines() if line.startswith('{"event"')]
    result = TrainingResult.model_validate_json(job.result.read_text(encoding="utf-8"))
    return result, [json.loads(line) for line in lines]


def history(job: TrainingJob) -> list[dict[str, Any]]:
    lines = (job.output / "history.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


@pytest.mark.usefixtures("own_signals_and_threads")
def test_the_worker_trains_in_parts_the_adapter_of_one_process(job: Job) -> None:
    plain = {"training": {"optim": "sgd", "learning_rate": 0.5, "max_steps": 4}}
    plain["peft"] = {"lora_dropout": 0.0}
    alone = job("alone", **plain)
    worker.train(alone)
    parts = job("parts", processes=2, sharding="fsdp2", **plain)
    result, events = in_two_processes(parts)
    told = [event for event in events if event["event"] == "parts"]
    assert len(told) == 2
    for each in told:
        assert each["processes"] == 2
        assert each["sharded"] == each["parameters"]
        assert each["held"] == each["numbers"] / 2
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert "Training in 2 processes (FSDPPeftModelForCausalLM over gloo)." in notes
    for one, other in zip(history(alone), history(parts), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    weights = [
        load_file(j.output / "adapter" / "adapter_model.safetensors") for j in (alone, parts)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=2e-5), name
    assert result.reload_difference < 1e-4


def test_a_training_in_parts_goes_on_to_the_same_bytes(job: Job) -> None:
    # AdamW has moments to lose, and dropout a random state.
    stateful = {"training": {"max_steps": 4, "save_steps": 3}, "processes": 2, "sharding": "fsdp2"}
    whole = job("whole", **stateful)
    first, _ = in_two_processes(whole)
    newest = checkpoints.newest_complete(whole.checkpoints)
    assert newest is not None
    assert checkpoints.step_of(newest) == 4
    shutil.rmtree(newest)
    again, _ = in_two_processes(whole)
    assert again.resumed_from_step == 3
    assert again.adapter_sha256 == first.adapter_sha256


def test_two_processes_hold_half_a_model_each_and_make_one_ordinary_adapter(
    base: Base, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    (tmp_path / "base").symlink_to(base.path)
    draw = torch.Generator().manual_seed(0)
    steps = [torch.randint(300, 4000, (4, 12), generator=draw).tolist() for _ in range(2)]
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    script = str(HERE / "fully_sharded.py")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run([sys.executable, *launcher, script, str(tmp_path)])
    found = json.loads((tmp_path / "trained.json").read_text())

    torch.manual_seed(0)
    alone = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32),
        LoraConfig(r=4, target_modules="all-linear"),
    )
    trained = [p for p in alone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for step, loss, norms in zip(steps, found["losses"], found["gradients"], strict=True):
        ids = torch.tensor(step)
        own = alone(input_ids=ids, labels=ids).loss
        own.backward()
        assert loss == pytest.approx(own.item(), rel=1e-5)
        assert norms == pytest.approx([p.grad.norm().item() for p in trained], rel=1e-3, abs=1e-6)
        optimizer.step()
        optimizer.zero_grad()
    assert found["same"]
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32), tmp_path / "adapter"
    )
    with torch.no_grad():
        ids = torch.tensor(steps[0])
        difference = loaded(input_ids=ids).logits - alone(input_ids=ids).logits
    assert float(difference.abs().max()) < 1e-4
