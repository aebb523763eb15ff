"""`loraline convert` as a person types it: real processes, exit codes, no traceback."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.long

BLOCKS = [True, False, True]
NAME = "transformer.h.0.attn.c_attn"


def loraline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", "convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def checkpoint(text: Any) -> Any:
    return text.save(text.adapted({NAME: {"r": 2, "lora_alpha": 4, "enable_lora": BLOCKS}}))


def test_there_and_back_on_the_command_line(text: Any, checkpoint: Path) -> None:
    flags = ["--r", "2", "--alpha", "4", "--enable-lora", "attn.c_attn=1,0,1"]
    output = text.folder / "new" / "adapter"
    done = loraline(checkpoint, *flags, "--base", text.base, "--output", output)
    assert done.returncode == 0, done.stderr
    assert (
        "1 x transformer.h.*.attn.c_attn: MergedLinear r=2 alpha=4, blocks 1,0,1; "
        "in PEFT r=4 alpha=8" in done.stdout
    )
    assert sorted(path.name for path in output.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "loralib.json",
    ]
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(text.base)
    assert config["task_type"] == "CAUSAL_LM"

    back = text.folder / "back.pt"
    done = loraline(output, "--to", "loralib", "--output", back, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["modules"][0]["kind"] == "MergedLinear"
    first, second = (torch.load(path, weights_only=True) for path in (checkpoint, back))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_sidecar_beside_the_checkpoint_is_found(text: Any, checkpoint: Path) -> None:
    checkpoint.with_suffix(".loralib.yaml").write_text(
        "base: ./base\nr: 2\nalpha: 4\nmodules:\n  c_attn: {enable_lora: [1, 0, 1]}\n"
    )
    done = loraline(checkpoint, "--output", text.folder / "adapter")
    assert done.returncode == 0, done.stderr
    assert len(load_file(text.folder / "adapter" / "adapter_model.safetensors")) == 2


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_a_malicious_pickle_is_exit_code_2_and_nothing_is_executed(text: Any) -> None:
    trap, path = text.folder / "executed", text.folder / "evil.pt"
    torch.save({f"{NAME}.lora_A": Malicious(trap)}, path)
    output = text.folder / "adapter"
    done = loraline(path, "--r", "2", "--alpha", "4", "--base", text.base, "--output", output)
    assert done.returncode == 2
    assert "is refused: loading it would call `" in done.stderr
    assert "Traceback" not in done.stderr
    assert not trap.exists()
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--r", "x"], "--r x: is not a number"),
        (["--r", "0"], "r: Input should be greater"),
        (["--enable-lora", "c_attn=1,2"], "--enable-lora c_attn=1,2: write a module's name"),
        (["--enable-lora", "1,0,1"], "--enable-lora 1,0,1: write a module's name"),
        ([], "Which base is the checkpoint of?"),
        (["--base", "./absent"], "The base ./absent is no folder or"),
        (["--sidecar", "absent.yaml"], "absent.yaml cannot be read"),
    ],
)
def test_wrong_flags_are_exit_code_2_before_a_process_is_started(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli import main

    checkpoint = tmp_path / "lora.pt"
    torch.save({}, checkpoint)
    assert main(["convert", str(checkpoint), "--output", str(tmp_path / "out"), *flags]) == 2
    text = capsys.readouterr().err
    assert told in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("source", "flags", "told"),
    [
        ("absent.pt", [], "there is no such file"),
        (".", [], "is a folder"),
        (".", ["--to", "loralib"], "is no adapter's folder"),
    ],
)
def test_a_wrong_source_is_exit_code_2(
    source: str, flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli import main

    arguments = [str(tmp_path / source), "--base", "x", "--output", str(tmp_path / "out.pt")]
    assert main(["convert", *arguments, *flags]) == 2
    assert told in capsys.readouterr().err
