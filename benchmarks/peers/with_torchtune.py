"""torchtune's recipe `lora_finetune_single_device` on the job's base and rows, in packs kept apart."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peer_work import NO_LOSS, Job, Trained, main
from torchtune._cli.tune import main as tune
from torchtune.datasets import PackedDataset

CHUNKED, WHOLE = "torchtune.modules.loss.CEWithChunkedOutputLoss", "torch.nn.CrossEntropyLoss"
UNKNOWN = 0
"""A token that no row ends with: what it fills is padding."""


def packed_rows(tokenizer: Any, rows_file: str, pack: int, packed: bool) -> PackedDataset:
    """The recipe's dataset. Rows keep their order; none is cut."""
    rows = [json.loads(line) for line in Path(rows_file).read_text().splitlines()]
    samples = [{"tokens": row["input_ids"], "labels": row["labels"]} for row in rows]
    return PackedDataset(samples, max_seq_len=pack, padding_idx=tokenizer.pad_id)


def no_tokenizer() -> Any:
    """Rows are token ids already; the recipe asks for nothing else."""
    return SimpleNamespace(pad_id=UNKNOWN)


def configuration(job: Job, accumulation: int) -> dict[str, Any]:
    """The shipped Phi-3 recipe's keys with the job's values, recomputing nothing."""
    shape, pack = job.shape(), job.settings["pack"]
    here = Path(__file__).stem
    return {
        "output_dir": str(job.folder / "out"),
        "model": {
            "_component_": "torchtune.models.phi3.lora_phi3",
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True,
            "apply_lora_to_output": False,
            "vocab_size": shape["vocab_size"],
            "num_layers": shape["num_hidden_layers"],
            "num_heads": shape["num_attention_heads"],
            "num_kv_heads": shape["num_key_value_heads"],
            "embed_dim": shape["hidden_size"],
            "intermediate_dim": shape["intermediate_size"],
            "max_seq_len": shape["max_position_embeddings"],
            "lora_rank": job.rank,
            "lora_alpha": job.alpha,
            "lora_dropout": 0.0,
        },
        "tokenizer": {"_component_": f"{here}.no_tokenizer"},
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(job.base),
            "checkpoint_files": ["model.safetensors"],
            "output_dir": str(job.folder / "out"),
            "model_type": "PHI3_MINI",
        },
        "resume_from_checkpoint": False,
        "save_adapter_weights_only": True,
        "dataset": {
            "_component_": f"{here}.packed_rows",
            "rows_file": str(job.rows_file),
            "pack": pack,
            "packed": True,
        },
        "seed": 0,
        "shuffle": False,
        "epochs": 1,
        "max_steps_per_epoch": None,
        "batch_size": job.settings["micro"],
        "gradient_accumulation_steps": accumulation,
        "optimizer": {
            "_component_": "torch.optim.AdamW",
            "fused": True,
            "weight_decay": 0.0,
            "lr": job.learning_rate,
        },
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 1,
        },
        "loss": {"_component_": CHUNKED if job.settings["chunked_loss"] else WHOLE},
        "clip_grad_norm": 1.0,
        "compile": False,
        "device": "cpu",
        "dtype": "bf16",
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger",
            "log_dir": str(job.folder / "log"),
        },
        "log_every_n_steps": 1,
    }


def train(job: Job) -> Trained:
    micro, pack = job.settings["micro"], job.settings["pack"]
    accumulation = job.accumulation(micro * pack)
    written = job.folder / "recipe.yaml"
    # YAML's flow style is JSON.
    written.write_text(json.dumps(configuration(job, accumulation)))
    sys.argv = ["tune", "run", "lora_finetune_single_device", "--config", str(written)]
    try:
        tune()
    except SystemExit as end:
        # The recipe ends its process, with nothing where all is well.
        if end.code:
            raise
    (log,) = (job.folder / "log").iterdir()
    losses = [float(found) for found in re.findall(r"\bloss:([\d.]+)", log.read_text())]
    packs = packed_rows(no_tokenizer(), str(job.rows_file), pack, packed=True).packs
    # Packs after the last whole step are computed, but change nothing.
    stepped = packs[: len(losses) * accumulation * micro]
    return Trained(
        tokens=sum(int((one["tokens"] != UNKNOWN).sum()) for one in stepped),
        answers=sum(int((one["labels"] != NO_LOSS).sum()) for one in stepped),
        losses=losses,
    )


if __name__ == "__main__":
    main(train, ("torchtune", "torch", "torchao"))
