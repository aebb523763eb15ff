"""Load the base model in the number format that this machine computes fastest, and find its linear layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from tasks.cores import available_cores
from tasks.errors import UserError
from tasks.memory import available_bytes
from tasks.quantization import Quantization, quantization_config
from tasks.training.targets import unmatched

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
LONGEST_PLAIN_ATTENTION = 512
"""Tokens."""
_CPU_FLAGS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class Precision:
    """How numbers are held and multiplied."""

    base: torch.dtype
    """Of the frozen weights. Adapters are always trained in float32."""
    autocast: Literal["bf16", "fp16"] | None
    """Format of matrix products where it differs from float32."""
    reason: str

    @property
    def name(self) -> str:
        """`bfloat16`, `float16` or `float32`."""
        return str(self.base).removeprefix("torch.")


def choose_precision(dtype: Dtype) -> Precision:
    """Resolve `auto` for this machine.

    Raises: UserError for float16 without a GPU, which no CPU here multiplies faster.
    """
    cuda = torch.cuda.is_available()
    if dtype == "float32":
        return Precision(torch.float32, None, "the recipe says so")
    if dtype == "float16":
        if not cuda:
            raise UserError(
                "training.dtype is float16, and there is no GPU: on a CPU it is slow and overflows. "
                "Write bfloat16, float32 or auto."
            )
        return Precision(torch.float16, "fp16", "the recipe says so")
    if dtype == "bfloat16":
        if cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(
                f"training.dtype is bfloat16, which {torch.cuda.get_device_name()} does not have. "
                "Write float16, float32 or auto."
            )
        return Precision(torch.bfloat16, "bf16", "the recipe says so")
    if cuda:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "bf16", f"{torch.cuda.get_device_name()} has it")
        return Precision(torch.float32, None, f"{torch.cuda.get_device_name()} has no bfloat16")
    flag = bf16_cpu_flag()
    if flag:
        return Precision(torch.bfloat16, "bf16", f"the CPU has {flag}")
    return Precision(torch.float32, None, f"the CPU has none of {', '.join(_CPU_FLAGS)}")


def bf16_cpu_flag(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The CPU's instruction set for bfloat16 products, if it has one."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return None
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return next((flag for flag in _CPU_FLAGS if flag in flags), None)


def use_all_cores() -> None:
    """Let torch use every core that this process may run on."""
    torch.set_num_threads(available_cores())


def device_name() -> str:
    """The GPU's name, or `cpu` with its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"cpu, {threads} threads" if threads != 1 else "cpu, 1 thread"


def plain_attention_is_faster(precision: Precision, longest: int) -> bool:
    """Whether to train with attention made of plain matrix products.

    On a CPU the backward pass of torch's fused attention is several times slower in bfloat16, until
    rows (`longest` in tokens) are so long that the scores' memory matters.
    """
    bfloat16_on_cpu = precision.base is torch.bfloat16 and not torch.cuda.is_available()
    return bfloat16_on_cpu and longest <= LONGEST_PLAIN_ATTENTION


def load_base(
    folder: Path,
    precision: Precision,
    quantization: Quantization,
    *,
    on_cpu: bool = False,
) -> Any:
    """The base model on its device (or `on_cpu`), frozen weights only, no code of its own.

    Raises: UserError when quantization is asked for and bitsandbytes is not installed.
    """
    options: dict[str, Any] = {
        "dtype": precision.base,
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
    }
    if quantization != "none":
        # Embeddings, norms and head stay in the format that the base computes in. PEFT's
        # `prepare_model_for_kbit_training` casts them to float32; the residual stream is float32 then (a norm
        # of Phi-3's kind casts back before it multiplies by its weight), and so are the 4-bit layers' products
        # and what checkpointing keeps: 1.5 GiB more at 2 x 4,096 tokens of Phi-3-mini. Nothing is lost: these
        # weights come in 16 bits, such norms take their mean square in float32 anyway, and evaluation and
        # serving load the base like this. What else that function does, freezing the base and letting
        # gradients reach checkpointed layers, PEFT and transformers do for every base.
        options["quantization_config"] = quantization_config(
            quantization, precision.base, field="training.quantization"
        )
        options["device_map"] = {
            "": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        }
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    if quantization == "none" and torch.cuda.is_available() and not on_cpu:
        model = model.to("cuda")
    _keep_gradients(model)
    # A cache of keys and values is of no use while training, and wrong when rows are packed.
    model.config.use_cache = False
    return model


def _keep_gradients(model: Any) -> None:
    # In its first forward pass without gradients (an evaluation, a proof before the first step) a 4-bit layer
    # of bitsandbytes rearranges its weight for a kernel of CPUs with avx512_bf16 that has no backward pass,
    # and training goes on without the base's gradients.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def formats(model: Any) -> list[tuple[Any, torch.dtype]]:
    """Each parameter of the base with its number format, for `keep_formats`."""
    return [(parameter, parameter.dtype) for parameter in model.parameters()]


def keep_formats(held: list[tuple[Any, torch.dtype]]) -> None:
    """Undo what a trainer's class casts: TRL's of ORPO makes a quantized base's other weights float32."""
    for parameter, dtype in held:
        if parameter.dtype != dtype and not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def padding_multiple() -> int:
    """A batch's rows are padded to a multiple of so many tokens."""
    # Tensor cores want multiples of eight; on a CPU padding is only work.
    return 8 if torch.cuda.is_available() else 1


def linear_modules(model: Any) -> list[str]:
    """Full names of the modules that a LoRA can be put on, embeddings left out, quantized ones included."""
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, torch.nn.Conv1d, Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def adaptable_modules(model: Any, peft_type: str, targets: Any = None) -> list[str]:
    """Full names that the targets of this PEFT type may mean.

    Linear modules, and embeddings beside them where `targets` ask for one: they are not offered otherwise.
    """
    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children())]
    embeddings = [n for n, m in leaves if isinstance(m, torch.nn.Embedding)]
    if peft_type == "LN_TUNING":
        weights = [(n, getattr(m, "weight", None)) for n, m in leaves]
        return [n for n, weight in weights if weight is not None and weight.dim() == 1]
    if peft_type == "TRAINABLE_TOKENS":
        return embeddings
    linear = linear_modules(model)
    asked = isinstance(targets, list | tuple | set) and len(unmatched(targets, embeddings)) < len(
        targets
    )
    return [*linear, *embeddings] if asked else linear


def head_name(model: Any) -> str | None:
    """Full name of the output head."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def peak_memory_bytes() -> int:
    """Most memory held so far: of the GPU's allocator, or resident in this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory_bytes() -> int | None:
    """Free memory of the GPU, or what the machine could still give; None where it cannot be told."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return available_bytes()
