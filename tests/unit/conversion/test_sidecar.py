"""The sidecar: what the file says, what the flags say, and which of them wins."""

from pathlib import Path

import pytest

from tasks.conversion.sidecar import (
    LoraSpec,
    check_patterns,
    parse_sidecar,
    read_sidecar,
    spec_of,
    with_flags,
)
from tasks.errors import UserError


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    as_yaml, as_json = tmp_path / "a.yaml", tmp_path / "a.json"
    as_yaml.write_text("r: 8\nalpha: 16\nmodules:\n  c_attn: {enable_lora: [1, 0, 1]}\n")
    as_json.write_text(
        '{"r": 8, "alpha": 16, "modules": {"c_attn": {"enable_lora": [true, false, true]}}}'
    )
    assert read_sidecar(as_yaml) == read_sidecar(as_json)


def test_the_longer_name_wins_field_by_field() -> None:
    sidecar = parse_sidecar(
        {
            "r": 8,
            "alpha": 16,
            "modules": {
                "h.1.attn.c_attn": {"r": 2},
                "c_attn": {"r": 4, "enable_lora": [True, False]},
                "attn.c_attn": {"alpha": 32},
            },
        },
        "test",
    )
    assert spec_of(sidecar, "h.0.attn.c_attn") == LoraSpec(4, 32, (True, False))
    assert spec_of(sidecar, "h.1.attn.c_attn") == LoraSpec(2, 32, (True, False))
    assert spec_of(sidecar, "h.1.mlp.c_fc") == LoraSpec(8, 16, None)
    # `c_attn` is a part of the name and no ending of the text.
    assert spec_of(sidecar, "h.1.xc_attn") == LoraSpec(8, 16, None)


def test_flags_go_before_the_file() -> None:
    file = parse_sidecar(
        {"r": 8, "alpha": 16, "base": "./a", "modules": {"x": {"r": 1, "alpha": 2}}}, "file"
    )
    flags = parse_sidecar({"alpha": 32, "modules": {"x": {"r": 3}}}, "flags")
    both = with_flags(file, flags)
    assert (both.r, both.alpha, both.base) == (8, 32, "./a")
    assert spec_of(both, "x") == LoraSpec(3, 2, None)


def test_a_relative_base_starts_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "lora.loralib.yaml"
    path.write_text("base: ../base\n")
    assert read_sidecar(path).base == str(tmp_path / "base")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("r: 0", "r: Input should be greater than or equal to 1"),
        ("r: 2.5", "r: "),
        ("alpha: -1", "alpha: "),
        ("alpha: .nan", "alpha: "),
        ("rank: 8", "rank: there is no such field"),
        ("bias: some", "bias: Input should be 'none', 'all' or 'lora_only'"),
        ("modules: {c_attn: {enable_lora: []}}", "modules.c_attn.enable_lora: "),
        ("modules: {c_attn: {enabled: [1]}}", "Did you mean `enable_lora`"),
        ("- 1", "does not describe a loralib checkpoint"),
        ("r: [", "is not YAML"),
    ],
)
def test_a_wrong_sidecar_is_refused_by_its_field(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "lora.loralib.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        read_sidecar(path)
    assert told in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_name_that_matches_nothing_is_refused_with_the_likely_one() -> None:
    sidecar = parse_sidecar({"modules": {"attn.c_atn": {"r": 1}}}, "test")
    with pytest.raises(UserError, match=r"Did you mean `attn\.c_attn`"):
        check_patterns(sidecar, ["h.0.attn.c_attn"], "lora.pt")
