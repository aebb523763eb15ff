"""Target modules: what the model does not have is refused by name, with what it has instead."""

import pytest

from tasks.errors import UserError
from tasks.training.targets import (
    all_linear_names,
    check_targets,
    coverage,
    translation,
    unmatched,
)

PHI3 = [
    f"model.layers.{layer}.{name}"
    for layer in range(2)
    for name in ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj")
]
LLAMA = [
    f"model.layers.0.{name}"
    for name in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
]
NOTEBOOK = ["k_proj", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]


def test_the_seven_split_projection_names_of_the_source_notebooks_are_refused_on_a_phi3() -> None:
    with pytest.raises(UserError) as refusal:
        check_targets(NOTEBOOK, [*PHI3, "lm_head"], "microsoft/Phi-3-mini-4k-instruct", "lm_head")
    message = str(refusal.value)
    assert "5 of 7 names match no module" in message
    assert (
        "microsoft/Phi-3-mini-4k-instruct: k_proj, q_proj, v_proj, gate_proj, up_proj." in message
    )
    assert "linear modules are: o_proj, qkv_proj, gate_up_proj, down_proj." in message
    assert "calls k_proj, q_proj, v_proj: qkv_proj." in message
    assert "calls gate_proj, up_proj: gate_up_proj." in message
    assert "target_modules: [o_proj, qkv_proj, gate_up_proj, down_proj]" in message
    assert refusal.value.exit_code == 2


def test_a_list_that_matches_in_part_is_refused_too() -> None:
    with pytest.raises(UserError, match="1 of 2 names match no module of m: q_proj"):
        check_targets(["q_proj", "o_proj"], PHI3, "m")


def test_fused_names_on_a_model_with_split_ones_are_translated_back() -> None:
    with pytest.raises(UserError, match="calls qkv_proj: q_proj, k_proj, v_proj"):
        check_targets(["qkv_proj"], LLAMA, "m")


@pytest.mark.parametrize(
    "targets",
    [
        None,
        "all-linear",
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
        {"down_proj"},
        ["model.layers.1.mlp.down_proj"],
        ["mlp.down_proj"],
        r".*\.layers\.1\..*proj",
    ],
)
def test_targets_that_the_model_has_pass(targets: object) -> None:
    check_targets(targets, [*PHI3, "lm_head"], "m", "lm_head")  # type: ignore[arg-type]


def test_a_name_must_match_whole_parts() -> None:
    assert unmatched(["proj", "kv_proj", "attn.o_proj"], PHI3) == ["proj", "kv_proj", "attn.o_proj"]


def test_a_regular_expression_without_a_match_is_refused() -> None:
    with pytest.raises(UserError, match="A string is a regular expression for whole names"):
        check_targets("o_proj", PHI3, "m")


def test_no_targets_at_all_are_refused() -> None:
    with pytest.raises(UserError, match="nothing would be trained"):
        check_targets([], PHI3, "m")


def test_the_output_head_is_refused() -> None:
    with pytest.raises(UserError, match="output head"):
        check_targets(["lm_head", "o_proj"], [*PHI3, "lm_head"], "m", "lm_head")


def test_a_misspelt_name_is_translated_to_the_nearest() -> None:
    assert translation("quv_proj", ["o_proj", "qkv_proj"]) == ["qkv_proj"]
    assert translation("zzz", ["o_proj", "qkv_proj"]) == []


def test_all_linear_is_written_in_short_names_where_they_mean_the_same() -> None:
    names = ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]
    assert all_linear_names([*PHI3, "lm_head"], "lm_head") == names
    # A block's own `head` would be covered by the short name of the output head's siblings.
    assert all_linear_names(["a.head", "b.up", "head"], "head") is None


def test_coverage_counts_modules_by_their_last_name() -> None:
    assert coverage(PHI3) == {"down_proj": 2, "gate_up_proj": 2, "o_proj": 2, "qkv_proj": 2}
