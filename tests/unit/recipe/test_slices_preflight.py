"""`target_slices` that the base's files refuse: told by `check` with their lines, before anything starts."""

import json
import shutil
from pathlib import Path

import pytest

from tasks.errors import RecipeError
from tasks.preflight import check_recipe

GOOD = """\
name: small
base: ./base
dataset:
  sources:
    - {type: jsonl, path: rows.jsonl}
training:
"""


@pytest.fixture
def folder(tmp_path: Path, starter: Path) -> Path:
    shutil.copytree(starter, tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Question?", "completion": "Answer."}\n')
    return tmp_path


def check(folder: Path, training: str) -> None:
    path = folder / "recipe.yaml"
    path.write_text(GOOD + training, encoding="utf-8")
    check_recipe(path)


def mistakes(folder: Path, training: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        check(folder, training)
    return str(error.value).replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize(
    "training",
    [
        "  target_slices: {qkv_proj: [q, v], gate_up_proj: [up]}\n",
        "  target_slices: {qkv_proj: [q]}\n  peft_config: {target_modules: [qkv_proj]}\n",
    ],
)
def test_slices_of_fused_projections_pass(folder: Path, training: str) -> None:
    check(folder, training)


def test_every_slice_that_the_base_lacks_is_named_with_its_line(folder: Path) -> None:
    found = mistakes(
        folder,
        "  target_slices:\n    q_proj: [q]\n    qkv_proj: [q, w]\n    gate_up_proj: [up]\n"
        "  peft_config: {target_modules: [qkv_proj]}\n",
    )
    assert [line.split(": ")[:2] for line in found] == [
        ["recipe.yaml:8", "training.target_slices.q_proj"],
        ["recipe.yaml:9", "training.target_slices.qkv_proj"],
        ["recipe.yaml:10", "training.target_slices.gate_up_proj"],
    ]
    assert (
        "`q_proj` is not a fused projection of ./base. Fused here: `qkv_proj` (q, k, v)" in found[0]
    )
    assert "has no block w; it has q, k, v, in this order" in found[1]
    assert "`gate_up_proj` gets no adapter: training.peft_config.target_modules" in found[2]


def test_what_is_no_list_of_blocks_is_told_once(folder: Path) -> None:
    (line,) = mistakes(folder, "  target_slices: {qkv_proj: q}\n")
    assert line.startswith("recipe.yaml:7: training.target_slices.qkv_proj")


def test_a_model_whose_kind_is_not_known_to_fuse_is_said_to_have_no_such_module(
    folder: Path,
) -> None:
    path = folder / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llama"}))
    (line,) = mistakes(folder, "  target_slices: {qkv_proj: [q]}\n")
    assert "No module of ./base is known to be" in line


def test_a_config_without_sizes_is_left_to_the_worker(folder: Path) -> None:
    path = folder / "base" / "config.json"
    config = json.loads(path.read_text())
    del config["num_attention_heads"]
    path.write_text(json.dumps(config))
    check(folder, "  target_slices: {qkv_proj: [q]}\n")
