"""Convert between loralib checkpoints and PEFT adapters: find the inputs, run the worker, publish."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Literal

from tasks import launch
from tasks.conversion.job import RECORD, Conversion, ConversionJob
from tasks.conversion.sidecar import Sidecar, read_sidecar, with_flags
from tasks.errors import BaseModelError, StageFailed, UserError
from tasks.files import expanded
from tasks.home import Home

TIMEOUT_SECONDS = 3600
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def convert_to_peft(
    checkpoint: Path, flags: Sidecar, *, output: Path, home: Home, sidecar: Path | None = None
) -> Conversion:
    """Write the folder `output` with the adapter of a loralib checkpoint.

    `flags` go before the file `sidecar` (default: `<checkpoint>.loralib.json` or `.yaml`, if there is
    one). Nothing is left at `output` when it fails.

    Raises: UserError for inputs that are wrong or do not fit together.
    """
    if checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is a folder; a loralib checkpoint is one file. To turn an adapter's folder "
            "into a loralib checkpoint add --to loralib."
        )
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: there is no such file.")
    _check_free(output)
    found = sidecar or beside(checkpoint)
    told = with_flags(read_sidecar(found), flags) if found else flags
    return _convert("peft", checkpoint, told, output, output / RECORD, home)


def convert_to_loralib(
    adapter: Path, flags: Sidecar, *, output: Path, home: Home, sidecar: Path | None = None
) -> Conversion:
    """Write the checkpoint `output` of an adapter's folder, and `<output>.loralib.json` beside it.

    What the folder's `loralib.json` says is taken where `flags` and `sidecar` are silent; `base` is
    needed where it has none. A suffix of .safetensors makes a safetensors file, others what torch.save
    writes.

    Raises: UserError for inputs that are wrong, and for an adapter that loralib cannot express.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter} is no adapter's folder: there is no adapter_config.json in it.")
    if output.suffix not in CHECKPOINT_SUFFIXES:
        raise UserError(
            f"--output {output}: with --to loralib it is one file, with one of the suffixes "
            f"{', '.join(CHECKPOINT_SUFFIXES)}."
        )
    record = _record_path(output)
    _check_free(output)
    _check_free(record)
    found = sidecar or (adapter / RECORD if (adapter / RECORD).is_file() else None)
    told = with_flags(read_sidecar(found), flags) if found else flags
    if told.base is None:
        told = told.model_copy(update={"base": _base_of(adapter)})
    return _convert("loralib", adapter, told, output, record, home)


def beside(checkpoint: Path) -> Path | None:
    """The sidecar that lies beside a checkpoint: `lora.loralib.json` or `.yaml` for `lora.pt`."""
    names = [checkpoint.with_suffix(f".loralib{suffix}") for suffix in (".json", ".yaml", ".yml")]
    return next((path for path in names if path.is_file()), None)


def _record_path(output: Path) -> Path:
    return output.with_suffix(".loralib.json")


def _convert(
    to: Literal["peft", "loralib"],
    source: Path,
    sidecar: Sidecar,
    output: Path,
    record: Path,
    home: Home,
) -> Conversion:
    if sidecar.base is None:
        raise UserError(
            "Which base is the checkpoint of? Give --base with its folder or Hub id (or `base` in a "
            "sidecar file); loralib does not store it."
        )
    base, name, commit = _base_config(sidecar.base)
    with home.scratch("conversion") as working:
        job = ConversionJob(
            to=to,
            source=source.absolute(),
            base=base,
            base_name=name,
            base_commit=commit,
            sidecar=sidecar,
            draft=working / output.name,
            record=working / "record.json",
            result=working / "result.json",
        )
        log = home.logs / "conversion.log"
        launch.run(
            launch.module("tasks.conversion.worker", str(launch.write_job(working, job))),
            log=log,
            name="The conversion",
            environment={**home.environment(), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            timeout_seconds=TIMEOUT_SECONDS,
            repeatable=False,
        )
        if not job.result.is_file():
            raise StageFailed(f"The conversion gave no result. Log: {log}")
        conversion = Conversion.model_validate_json(job.result.read_text(encoding="utf-8"))
        _publish(job.draft, output)
        if to == "loralib":
            _publish(job.record, record)
    return conversion


def _base_config(base: str) -> tuple[Path, str, str | None]:
    """The folder with the base's config.json, what an adapter calls the base, and its commit."""
    folder = expanded(base)
    if (folder / "config.json").is_file():
        folder = folder.resolve()
        return folder, str(folder), None
    if folder.is_file() and folder.suffix == ".safetensors":
        folder = folder.resolve()
        return folder, str(folder), None
    if folder.exists() or base.startswith((".", "/", "~")):
        what = "holds no config.json" if folder.is_dir() else "is no folder or .safetensors file"
        raise BaseModelError(
            f"The base {base} {what}. Name a model's folder, a Hub id, or the weights of another model as safetensors."
        )
    from tasks.hub import commit_of, snapshot

    commit = commit_of(base, "main")
    return snapshot(base, commit, ["config.json"]), base, commit


def _base_of(adapter: Path) -> str | None:
    """The base that an adapter's configuration names."""
    path = adapter / "adapter_config.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return str(name) if name else None


def _check_free(output: Path) -> None:
    """What is there already is never overwritten."""
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise UserError(f"--output {output}: is there already. Name another place, or remove it.")


def _publish(draft: Path, output: Path) -> None:
    """Copy beside the place and rename: nobody sees half of it."""
    near = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if draft.is_dir():
            # Not with the files' modes: safetensors closes its files to everybody else.
            shutil.copytree(draft, near, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(draft, near)
        near.replace(output)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}).") from error
    finally:
        if near.is_dir():
            shutil.rmtree(near, ignore_errors=True)
        else:
            near.unlink(missing_ok=True)
