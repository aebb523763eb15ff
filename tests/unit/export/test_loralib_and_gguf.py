"""Through other people's formats: loralib's by our conversion, GGUF by llama.cpp's own converters."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import BaseModelError, StageFailed, UserError, WorkerFailed
from tasks.export.exporting import export_version
from tasks.export.gguf import complete_tokenizer
from tasks.export.reach import gguf_problems
from tasks.export.version import read_version

pytestmark = pytest.mark.long

CONVERTER = """\
#!{python}
import json, os, sys
from pathlib import Path
import sibling
source = Path(sys.argv[-1])
told = {{
    "arguments": sys.argv[1:],
    "script": Path(__file__).name,
    "files": sorted(path.name for path in source.iterdir()),
    "token": os.environ.get("HF_TOKEN"),
}}
Path(__file__).with_name("told.json").write_text(json.dumps(told))
Path(sys.argv[sys.argv.index("--outfile") + 1]).write_bytes({bytes!r})
sys.exit({code})
"""


def llama_cpp(folder: Path, *, written: bytes = b"GGUF\x03", code: int = 0) -> Path:
    """A stand-in for a checkout: scripts that import their neighbour and record their arguments."""
    folder.mkdir()
    (folder / "sibling.py").write_text("")
    for name in ("convert_lora_to_gguf.py", "convert_hf_to_gguf.py"):
        script = CONVERTER.format(python=sys.executable, bytes=written, code=code)
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def _no_llama_cpp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_a_loralib_checkpoint_comes_back_as_the_same_adapter(project: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from tasks.conversion.converting import convert_to_peft
    from tasks.conversion.sidecar import Sidecar

    output = tmp_path / "loralib"
    done = export_version(
        project.tracker, "models:/tiny/1", to="loralib", output=output, base=project.base
    )
    assert sorted(done.sha256s) == ["README.md", "lora.loralib.json", "lora.pt"]
    sidecar = json.loads((output / "lora.loralib.json").read_text())
    assert sidecar["base"] == "base"
    back = tmp_path / "back"
    convert_to_peft(
        output / "lora.pt", Sidecar(base=str(project.base)), output=back, home=project.home
    )
    expected = load_file(project.model / "artifacts" / "adapter" / "adapter_model.safetensors")
    got = load_file(back / "adapter_model.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_what_loralib_cannot_express_is_refused_and_nothing_is_left(
    own_project: Any, tmp_path: Path
) -> None:
    artifacts = own_project.model / "artifacts"
    path = artifacts / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))
    own_project.seal()
    for kind in ("loralib", "gguf"):
        if kind == "gguf":
            bin_folder = llama_cpp(tmp_path / "bin")
            assert bin_folder.is_dir()
        with pytest.raises(UserError, match="use_dora"):
            export_version(
                own_project.tracker,
                "models:/tiny/1",
                to=kind,  # type: ignore[arg-type]
                output=tmp_path / "out" / kind,
                base=own_project.base,
            )
    assert list((tmp_path / "out").iterdir()) == []


def test_gguf_without_llama_cpp_says_where_it_comes_from(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export() -> None:
        export_version(project.tracker, "models:/tiny/1", to="gguf", output=tmp_path / "g")

    with pytest.raises(UserError, match="which is not on this machine's PATH") as told:
        export()
    assert "LLAMA_CPP_DIR" in str(told.value)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no convert_lora_to_gguf\.py in it"):
        export()
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("found_by", ["PATH", "LLAMA_CPP_DIR"])
def test_the_adapter_goes_through_llama_cpps_converter(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found_by: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    folder = llama_cpp(tmp_path / "bin")
    if found_by == "LLAMA_CPP_DIR":
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv("LLAMA_CPP_DIR", str(folder))
    output = tmp_path / "gguf"
    done = export_version(
        project.tracker, "models:/tiny/1", to="gguf", output=output, dtype="fp16", base=project.base
    )
    assert sorted(done.sha256s) == ["README.md", "adapter.gguf"]
    told = json.loads((folder / "told.json").read_text())
    assert told["script"] == "convert_lora_to_gguf.py"
    arguments = told["arguments"]
    assert arguments[2:6] == ["--outtype", "f16", "--base", str(project.base)]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(told["files"])
    assert told["token"] == ""
    assert "--lora adapter.gguf" in (output / "README.md").read_text()


def test_the_whole_model_is_merged_with_a_certificate_and_then_converted(
    project: Any, tmp_path: Path
) -> None:
    folder = llama_cpp(tmp_path / "bin")
    output = tmp_path / "gguf"
    done = export_version(
        project.tracker,
        "models:/tiny/1",
        to="gguf",
        output=output,
        whole_model=True,
        base=project.base,
    )
    assert sorted(done.sha256s) == ["README.md", "certificate.json", "model.gguf"]
    assert done.certificate is not None
    assert sorted(done.certificate.files) == ["README.md", "model.gguf"]
    told = json.loads((folder / "told.json").read_text())
    assert told["script"] == "convert_hf_to_gguf.py"
    assert told["arguments"][2:4] == ["--outtype", "f32"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(told["files"])
    assert [path.name for path in tmp_path.glob("*gguf*")] == ["gguf"]
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("behaviour", "error", "told"),
    [
        ({"written": b"oops"}, StageFailed, "wrote no GGUF file"),
        ({"code": 3}, WorkerFailed, "exit code 3"),
    ],
)
def test_a_converter_that_fails_leaves_nothing(
    project: Any, tmp_path: Path, behaviour: Any, error: type[Exception], told: str
) -> None:
    llama_cpp(tmp_path / "bin", **behaviour)
    with pytest.raises(error, match=told):
        export_version(
            project.tracker,
            "models:/tiny/1",
            to="gguf",
            output=tmp_path / "out" / "gguf",
            base=project.base,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_what_llama_cpp_would_scale_wrongly_is_named() -> None:
    assert gguf_problems({"peft_type": "LORA", "r": 8, "rank_pattern": {"q_proj": 4}}) == []
    (rslora,) = gguf_problems({"use_rslora": True})
    (pattern,) = gguf_problems({"alpha_pattern": {"q_proj": 4}})
    assert rslora.startswith("use_rslora")
    assert pattern.startswith("alpha_pattern")


def test_a_hub_base_gives_the_tokenizer_file_that_only_the_converter_reads(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def snapshot(*arguments: Any) -> Path:
        asked.append(arguments)
        if len(asked) == 1:
            raise BaseModelError("the Hub did not answer")
        (tmp_path / "tokenizer.model").write_bytes(b"pieces")
        return tmp_path

    monkeypatch.setattr("tasks.hub.snapshot", snapshot)
    local = read_version(
        project.tracker, "models:/tiny/1", tmp_path / "v", base=None, find_base=False
    )
    loading = {**local.loading, "base_model": "team/base", "base_commit": "a" * 40}
    from_hub = replace(local, loading=loading)
    model = tmp_path / "model"
    model.mkdir()
    complete_tokenizer(local, model)
    assert asked == []
    complete_tokenizer(from_hub, model)
    assert "was not fetched: the Hub did not answer" in caplog.text
    complete_tokenizer(from_hub, model)
    assert asked[-1] == ("team/base", "a" * 40, ["tokenizer.model"])
    assert (model / "tokenizer.model").read_bytes() == b"pieces"
