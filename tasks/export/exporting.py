"""Export a registered version: a PEFT folder, a merged model, a loralib checkpoint, or GGUF."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.conversion.converting import convert_to_loralib
from tasks.conversion.sidecar import Sidecar
from tasks.drafts import published, require_free
from tasks.errors import UserError
from tasks.export import gguf
from tasks.export.card import model_card
from tasks.export.job import CERTIFICATE, Certificate, Dtype
from tasks.export.merging import merge_version, own_dtype
from tasks.export.push import Pushed, Target
from tasks.export.reach import vllm_problems
from tasks.export.usage import CHECKPOINT, GGUF_ADAPTER, GGUF_MODEL, Kind
from tasks.export.version import ExportedVersion, read_version
from tasks.files import hashes
from tasks.tracking import Tracker

Format = Literal["peft", "merged", "loralib", "gguf"]
CARD = "README.md"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    format: Format
    output: Path
    sha256s: dict[str, str]
    certificate: Certificate | None
    pushed: Pushed | None


def export_version(
    tracker: Tracker,
    uri: str,
    *,
    to: Format,
    output: Path,
    dtype: Dtype | None = None,
    base: Path | None = None,
    whole_model: bool = False,
    push: str | None = None,
) -> Exported:
    """Write the version to the folder `output`, which must be absent or empty: whole, or not at all.

    `uri` is `models:/NAME@ALIAS` or `models:/NAME/VERSION`. `dtype` is of the written weights (default:
    the base's own) and means nothing for peft and loralib. `base` is the base's folder where it is not
    found by itself. `whole_model` is for gguf: merge, and convert the model and not the adapter.
    `push` names a repository of the Hub.

    Raises: UserError for what is asked wrongly or cannot be expressed; StageFailed when the version is
    damaged, the merged model is another one, or a converter or the Hub fails.
    """
    output = output.absolute()
    _check_asked(to, dtype, whole_model)
    require_free(output)
    converter: list[str] = []
    if to == "gguf":
        converter = gguf.find_converter(
            gguf.MODEL_CONVERTER if whole_model else gguf.ADAPTER_CONVERTER
        )
    target = Target(push) if push else None
    with tracker.home.scratch("export") as working:
        version = read_version(tracker, uri, working / "version", base=base, find_base=to != "peft")
        with published(output) as draft:
            certificate = None
            kind: Kind
            if to == "peft":
                kind = "peft"
                _write_peft(version, draft)
            elif to == "loralib":
                kind = "loralib"
                _write_loralib(version, draft, tracker)
            elif to == "merged":
                kind = "merged"
                certificate = _merge(version, dtype, draft, working, tracker)
            elif whole_model:
                kind = "gguf-model"
                merged = draft.with_name(f"{draft.name}.merged")
                try:
                    certificate = _merge(version, dtype, merged, working, tracker)
                    gguf.complete_tokenizer(version, merged)
                    draft.mkdir()
                    gguf.convert_model(
                        converter, merged, certificate.dtype, draft / GGUF_MODEL, home=tracker.home
                    )
                finally:
                    shutil.rmtree(merged, ignore_errors=True)
            else:
                kind = "gguf-adapter"
                gguf.check_expressible(version)
                assert version.base is not None
                draft.mkdir()
                written = dtype or own_dtype(version.base)
                gguf.convert_adapter(
                    converter, version, written, draft / GGUF_ADAPTER, home=tracker.home
                )
            card = model_card(version, kind, certificate)
            (draft / CARD).write_text(card, encoding="utf-8")
            if certificate is not None:
                certificate = certificate.model_copy(update={"files": hashes(draft)})
                text = certificate.model_dump_json(indent=1)
                (draft / CERTIFICATE).write_text(text + "\n", encoding="utf-8")
            sha256s = hashes(draft)
            _open_to_readers(draft)
    pushed = target.push(output, f"{version.uri} as {to}") if target else None
    return Exported(to, output, sha256s, certificate, pushed)


def _check_asked(to: Format, dtype: Dtype | None, whole_model: bool) -> None:
    if dtype is not None and to in ("peft", "loralib"):
        raise UserError(
            f"--dtype {dtype}: with --format {to} the adapter's numbers are copied as they were trained. "
            "Leave it out, or choose merged or gguf."
        )
    if whole_model and to != "gguf":
        raise UserError("--whole-model is for --format gguf; --format merged is the whole model.")


def _open_to_readers(draft: Path) -> None:
    """Not with the modes of safetensors, which closes its files to everybody else."""
    for path in draft.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_peft(version: ExportedVersion, draft: Path) -> None:
    shutil.copytree(version.adapter, draft)
    for problem in vllm_problems(version.adapter_config):
        _log.warning("vLLM does not serve %s as it is: %s.", version.uri, problem)


def _write_loralib(version: ExportedVersion, draft: Path, tracker: Tracker) -> None:
    assert version.base is not None
    draft.mkdir()
    told = Sidecar(base=str(version.base))
    convert_to_loralib(version.adapter, told, output=draft / CHECKPOINT, home=tracker.home)
    record = (draft / CHECKPOINT).with_suffix(".loralib.json")
    values = json.loads(record.read_text(encoding="utf-8"))
    # Where the base lies on this machine helps nobody else.
    values["base"] = version.base_model
    record.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _merge(
    version: ExportedVersion, dtype: Dtype | None, draft: Path, working: Path, tracker: Tracker
) -> Certificate:
    assert version.base is not None
    if version.trained_on != "none":
        _log.warning(
            "%s was trained on the base quantized to %s and is merged into the unquantized base: its "
            "answers will be close to those of the training, and not the same.",
            version.uri,
            version.trained_on,
        )
    return merge_version(
        version, dtype or own_dtype(version.base), draft, working=working, home=tracker.home
    )
