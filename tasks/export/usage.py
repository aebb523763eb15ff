"""The lines of a model card that load what was exported."""

from typing import Literal

from tasks.export.reach import vllm_problems, vllm_rank
from tasks.export.version import ExportedVersion

Kind = Literal["peft", "merged", "loralib", "gguf-adapter", "gguf-model"]
CHECKPOINT = "lora.pt"
"""The loralib checkpoint's file name."""
GGUF_ADAPTER = "adapter.gguf"
GGUF_MODEL = "model.gguf"


def usage(version: ExportedVersion, kind: Kind) -> str:
    """How to load it, in the fewest lines."""
    base = version.base_model
    if kind == "merged":
        return _python(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")'
        )
    if kind == "gguf-model":
        return _shell(f"llama-server --model {GGUF_MODEL}")
    if kind == "gguf-adapter":
        return f"An adapter for `{base}` in GGUF, which is not part of it:\n\n" + _shell(
            f"llama-server --model BASE.gguf --lora {GGUF_ADAPTER}"
        )
    if kind == "loralib":
        return (
            f"`{CHECKPOINT}` is a checkpoint of loralib; what it does not say (r, alpha, base) is in "
            f"`{CHECKPOINT.removesuffix('.pt')}.loralib.json`. On a model whose layers are loralib's:\n\n"
            + _python(f'model.load_state_dict(torch.load("{CHECKPOINT}"), strict=False)')
        )
    lines = _python(
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}"{_revision(version)})\n'
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")'
    )
    config = version.adapter_config
    if vllm_problems(config):
        return lines
    return f"{lines}\n\n" + _shell(
        f"vllm serve {base} --enable-lora --max-lora-rank {vllm_rank(config)} "
        f"--lora-modules {version.name.rpartition('/')[2]}=THIS_FOLDER"
    )


def _revision(version: ExportedVersion) -> str:
    return f', revision="{version.base_commit}"' if version.base_commit else ""


def _python(text: str) -> str:
    return f"```python\n{text}\n```"


def _shell(text: str) -> str:
    return f"```bash\n{text}\n```"
