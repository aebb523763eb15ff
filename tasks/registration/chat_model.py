"""The model that MLflow loads from a version: a LoRA adapter put on its base, answering chat requests.

This file travels alone inside the version ("models from code") and therefore imports nothing of
loraline. Load it with `mlflow.pyfunc.load_model("models:/NAME@champion")`; when the base is not where
this file looks for it, name it: `load_model(uri, model_config={"base": "/path/to/base"})`.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
HUB_FILES = [*WEIGHT_FILES, "generation_config.json"]
# One entry per file state, so that loading several versions on one base hashes it once.
_hashes: dict[tuple[str, int, int, int], str] = {}


class Sampling(NamedTuple):
    """How an answer is drawn; temperature 0 is greedy and needs no seed."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None


class ChatModel(PythonModel):
    """Answers `{"messages": [...], "max_tokens": ..., "temperature": ...}` as OpenAI's chat API does.

    One request gives one response (a dict), several give a list in the same order. Answers are
    greedy unless a request says `temperature`.
    """

    def load_context(self, context: Any) -> None:
        """Check the version's bytes, find the base, put the adapter on it.

        Raises: RuntimeError in words when a file was changed, or no base with the recorded sha256 can
        be found.
        """
        import torch
        from peft import PeftModel, prepare_model_for_kbit_training
        from tokenizers import Tokenizer
        from transformers import AutoModelForCausalLM, GenerationConfig

        config: dict[str, Any] = dict(context.model_config or {})
        adapter = Path(context.artifacts["adapter"])
        check_files(Path(context.artifacts["manifest"]))
        base = find_base(config, adapter)
        self._name = str(config.get("name"))
        self._default_max_tokens = int(config.get("max_tokens") or 256)
        self._batch_size = int(config.get("batch_size") or 8)

        wanted = str(config.get("device") or "auto")
        self._device = (
            ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
        )
        dtype = _dtype(str(config.get("dtype") or "auto"), self._device)
        quantization = _quantization(str(config.get("quantization") or "none"), dtype)
        model = AutoModelForCausalLM.from_pretrained(
            str(base),
            dtype=dtype,
            device_map={"": self._device} if quantization else None,
            quantization_config=quantization,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
        if quantization:
            # As in training: what is not quantized (norms, head) computes in float32.
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        # The base's own sampling habits must not reach the adapter's answers.
        model.generation_config = GenerationConfig()
        self._model = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
        _check_keys(self._model, adapter)
        if not quantization:
            self._model.to(self._device)
        self._model.eval()

        self._tokenizer = Tokenizer.from_file(str(adapter / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._template, self._template_tokens = _chat_template(adapter)
        self._control_tokens = [
            token.content
            for token in self._tokenizer.get_added_tokens_decoder().values()
            if token.special
        ]
        self._stop_ids = _stop_ids(adapter, self._tokenizer, self._template_tokens)
        self._context_length = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Answer a request (a dict), several (a list of dicts), or a DataFrame with a row for each.

        Raises: ValueError naming the row when a request is malformed, too long for the model, or has
        a control token of the model in a message.
        """
        requests = [{**(params or {}), **request} for request in _requests(model_input)]
        answers = self.answer(requests)
        return answers[0] if len(answers) == 1 else answers

    def answer(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The responses to these requests, in order."""
        prompts: list[list[int]] = []
        samplings: list[Sampling] = []
        for number, request in enumerate(requests, start=1):
            try:
                prompt, sampling = self.prepare(request)
            except ValueError as error:
                where = f"Request {number} of {len(requests)}: " if len(requests) > 1 else ""
                raise ValueError(f"{where}{error}") from None
            prompts.append(prompt)
            samplings.append(sampling)
        answers: dict[int, dict[str, Any]] = {}
        for rows in self._batches(prompts, samplings):
            generated = self._generate([prompts[row] for row in rows], [samplings[r] for r in rows])
            for row, ids in zip(rows, generated, strict=True):
                answers[row] = self._response(len(prompts[row]), ids)
        return [answers[row] for row in range(len(requests))]

    def prepare(self, request: dict[str, Any]) -> tuple[list[int], Sampling]:
        """The request's prompt as token ids and how to answer it. Raises: ValueError in words."""
        prompt = self.prompt_ids(request.get("messages"))
        return prompt, self._sampling(request, len(prompt))

    def prompt_ids(self, messages: Any) -> list[int]:
        """Token ids of the rendered conversation up to and including the assistant's header.

        The same ids as in training: the adapter's own chat template, and no token added around it.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = _messages(messages)
        for message in conversation:
            for token in self._control_tokens:
                if token in message["content"]:
                    raise ValueError(
                        f"the message of role {message['role']!r} contains {token!r}, a control token "
                        "of this model. Remove it: it would end or forge a turn of the conversation."
                    )
        rendered, _ = render_jinja_template(
            conversations=[conversation],
            chat_template=self._template,
            add_generation_prompt=True,
            **self._template_tokens,
        )
        ids: list[int] = self._tokenizer.encode(rendered[0], add_special_tokens=False).ids
        return ids

    def logits(self, input_ids: Sequence[int]) -> Any:
        """The adapted model's logits for one row, shape (len(input_ids), vocabulary), in float32."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor([list(input_ids)], device=self._device)
            return self._model(input_ids=ids, use_cache=False).logits[0].float().cpu()

    def base_logits(self, input_ids: Sequence[int]) -> Any:
        """The same without the adapter."""
        with self._model.disable_adapter():
            return self.logits(input_ids)

    def _sampling(self, request: dict[str, Any], prompt_length: int) -> Sampling:
        room = self._context_length - prompt_length
        if room < 1:
            raise ValueError(
                f"the conversation has {prompt_length} tokens and the model reads at most "
                f"{self._context_length}. Shorten it."
            )
        max_tokens = _whole(request, "max_tokens", self._default_max_tokens)
        temperature = float(_given(request, "temperature", 0.0))
        top_p = float(_given(request, "top_p", 1.0))
        seed = _whole(request, "seed", -1)
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1.")
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"temperature is {temperature} and top_p {top_p}; temperature must not be negative, "
                "and top_p must be above 0 and at most 1."
            )
        return Sampling(min(max_tokens, room), temperature, top_p, None if seed < 0 else seed)

    def _batches(self, prompts: list[list[int]], samplings: list[Sampling]) -> Iterator[list[int]]:
        """Rows that are generated together: equal sampling, similar length; seeded rows alone."""
        groups: dict[Any, list[int]] = {}
        for row, sampling in enumerate(samplings):
            alone = row if sampling.seed is not None else None
            groups.setdefault((sampling.temperature, sampling.top_p, alone), []).append(row)
        for rows in groups.values():
            rows.sort(key=lambda row: len(prompts[row]))
            for start in range(0, len(rows), self._batch_size):
                yield rows[start : start + self._batch_size]

    def _generate(self, prompts: list[list[int]], samplings: list[Sampling]) -> list[list[int]]:
        """Generated ids of each prompt, cut after its first stop token or its own max_tokens."""
        import torch
        from transformers import GenerationConfig

        first = samplings[0]
        width = max(map(len, prompts))
        pad = self._stop_ids[0]
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self._device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device
        )
        drawn = first.temperature > 0
        settings = GenerationConfig(
            max_new_tokens=max(s.max_tokens for s in samplings),
            do_sample=drawn,
            temperature=first.temperature if drawn else None,
            top_p=first.top_p if drawn else None,
            top_k=0 if drawn else None,
            eos_token_id=self._stop_ids,
            pad_token_id=pad,
        )
        if drawn and first.seed is not None:
            torch.manual_seed(first.seed)
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings
            )
        answers = []
        for row, sampling in zip(out[:, width:].tolist(), samplings, strict=True):
            answer = row[: sampling.max_tokens]
            end = next((i + 1 for i, token in enumerate(answer) if token in self._stop_ids), None)
            answers.append(answer[:end])
        return answers

    def _response(self, prompt_tokens: int, ids: list[int]) -> dict[str, Any]:
        stopped = bool(ids) and ids[-1] in self._stop_ids
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text.strip()},
                    "finish_reason": "stop" if stopped else "length",
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": len(ids),
                "total_tokens": prompt_tokens + len(ids),
            },
        }


def check_files(manifest: Path) -> None:
    """Compare every file of the version with the manifest that was written when it was registered.

    The manifest says from where its names count: `root`, relative to the folder where it lies. What
    vouches for the manifest is the registry, which `loraline verify` and a promotion ask.

    Raises: RuntimeError naming the files that differ, are missing or were added.
    """
    values = json.loads(manifest.read_text(encoding="utf-8"))
    recorded: dict[str, str] = values["files"]
    root = (manifest.parent / values.get("root", "adapter")).resolve()
    present = {
        name: path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not _written_since(name := path.relative_to(root).as_posix())
    }
    present.pop(Path(os.path.relpath(manifest.resolve(), root)).as_posix(), None)
    wrong = [f"{name} is missing" for name in recorded if name not in present]
    wrong += [f"{name} was added" for name in present if name not in recorded]
    wrong += [
        f"{name} was changed"
        for name, path in present.items()
        if name in recorded and _sha256(path) != recorded[name]
    ]
    if wrong:
        raise RuntimeError(
            f"The version in {root} is not the one that was registered: {'; '.join(wrong)}. "
            "Download it again; if it stays so, its artifacts were damaged or tampered with: promote "
            "another version, or register the adapter again."
        )


def find_base(config: dict[str, Any], adapter: Path) -> Path:
    """The folder of the base model that has the recorded sha256.

    Looked for in this order: `model_config["base"]`, the environment variable LORALINE_BASE, the Hub
    snapshot (in the local cache, else downloaded unless HF_HUB_OFFLINE is set), and the path that
    the recipe names, from the working directory, the version's folder and all their parents.

    Raises: RuntimeError naming each place tried and the ways out.
    """
    wanted = str(config["base_sha256"])
    tried: list[str] = []
    named = (
        ('model_config["base"]', config.get("base")),
        ("LORALINE_BASE", os.environ.get("LORALINE_BASE")),
    )
    for name, value in named:
        if value:
            # Said by a person: when it is wrong, an answer from another place would hide that.
            folder = Path(str(value)).expanduser().resolve()
            problem = _mismatch(folder, wanted)
            if problem is None:
                return folder
            raise _no_base(config, [f"{folder} ({name}): {problem}"])
    places = (
        _hub_places(config, tried) if config.get("base_commit") else _recipe_places(config, adapter)
    )
    for folder in places:
        problem = _mismatch(folder, wanted)
        if problem is None:
            return folder
        tried.append(f"{folder}: {problem}")
    raise _no_base(config, tried)


def weights_sha256(folder: Path) -> str:
    """sha256 over the names and contents of config.json and the safetensors files."""
    files = sorted(p for pattern in WEIGHT_FILES for p in folder.glob(pattern))
    value = [[p.name, _sha256(p)] for p in files]
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _hub_places(config: dict[str, Any], tried: list[str]) -> Iterator[Path]:
    from huggingface_hub import snapshot_download

    model, commit = str(config["base_model"]), str(config["base_commit"])
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    for local in (True, False):
        where = f"{model}@{commit} {'in the local Hub cache' if local else 'on the Hub'}"
        if not local and offline:
            tried.append(f"{where}: not asked, HF_HUB_OFFLINE is set")
            return
        try:
            yield Path(
                snapshot_download(
                    model,
                    revision=commit,
                    allow_patterns=HUB_FILES,
                    # Other formats of the same weights lie in subfolders.
                    ignore_patterns=["*/*"],
                    local_files_only=local,
                )
            )
        except Exception as error:  # the Hub client raises its own errors, httpx's and OSError
            tried.append(f"{where}: {error.__class__.__name__}")


def _recipe_places(config: dict[str, Any], adapter: Path) -> Iterator[Path]:
    path = config.get("base_path")
    if not path:
        return
    recipe_folder = Path(str(config.get("recipe") or "")).parent
    roots: dict[Path, None] = {}
    for start in (Path.cwd(), adapter.resolve()):
        roots.update(dict.fromkeys((start, *start.parents)))
    places = dict.fromkeys((root / recipe_folder / str(path)).resolve() for root in roots)
    yield from places


def _mismatch(folder: Path, wanted: str) -> str | None:
    if not folder.is_dir():
        return "no such folder"
    if not (folder / "config.json").is_file():
        return "holds no config.json"
    found = weights_sha256(folder)
    if found != wanted:
        return f"is another model (sha256 {found[:12]}, the adapter belongs on {wanted[:12]})"
    return None


def _no_base(config: dict[str, Any], tried: list[str]) -> RuntimeError:
    commit = config.get("base_commit")
    name = f"{config.get('base_model')}{f'@{commit}' if commit else ''}"
    lines = "\n".join(f"  {line}" for line in tried) or "  nowhere: no place is recorded"
    return RuntimeError(
        f"The base model {name} (sha256 {str(config['base_sha256'])[:12]}) that this adapter belongs "
        f"on was not found. Tried:\n{lines}\n"
        'Name its folder: load_model(uri, model_config={"base": "/path/to/base"}), or set '
        "LORALINE_BASE=/path/to/base, or start in the folder of the repository that holds the recipe."
    )


def _written_since(name: str) -> bool:
    """What loading a version leaves in its folder: MLflow's note of its name, and Python's bytecode."""
    return name == "registered_model_meta" or name.startswith("__pycache__/")


def _sha256(path: Path) -> str:
    real = path.resolve()
    status = real.stat()
    key = (str(real), status.st_size, status.st_mtime_ns, status.st_ino)
    if key not in _hashes:
        with real.open("rb") as stream:
            _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[key]


def _check_keys(model: Any, adapter: Path) -> None:
    """Refuse an adapter of which some tensors did not find their place, which PEFT only warns of."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(adapter / "adapter_model.safetensors"), framework="pt") as file:
        saved = set(file.keys())
    # Said explicitly: "auto" would ask the Hub whether the base's vocabulary was resized.
    embeddings = any("embed_tokens" in key or "lm_head" in key for key in saved)
    placed = set(get_peft_model_state_dict(model, save_embedding_layers=embeddings))
    if saved != placed:
        odd = sorted(saved ^ placed)
        raise RuntimeError(
            f"{len(odd)} tensors of the adapter do not fit the base, for example {odd[0]}. "
            "Install the versions of peft and transformers that requirements.txt of this version names."
        )


def _dtype(name: str, device: str) -> Any:
    import torch

    if name != "auto":
        return getattr(torch, name)
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _quantization(name: str, dtype: Any) -> Any:
    if name == "none":
        return None
    from transformers import BitsAndBytesConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _chat_template(adapter: Path) -> tuple[str, dict[str, str]]:
    """The template and the special tokens that it may mention."""
    config = json.loads((adapter / "tokenizer_config.json").read_text(encoding="utf-8"))
    file = adapter / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if not isinstance(template, str):
        raise RuntimeError(f"{adapter} holds no chat template, so the adapter cannot answer chats.")
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return template, tokens


def _stop_ids(adapter: Path, tokenizer: Any, tokens: dict[str, str]) -> list[int]:
    file = adapter / "generation_config.json"
    value = (
        json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    )
    ids = [value] if isinstance(value, int) else list(value or [])
    if not ids and (end := tokenizer.token_to_id(tokens.get("eos_token", ""))) is not None:
        ids = [end]
    if not ids:
        raise RuntimeError(f"{adapter} names no token at which an answer ends (eos_token_id).")
    return [int(token) for token in ids]


def _requests(model_input: Any) -> list[dict[str, Any]]:
    """The requests as dicts, whether MLflow made a DataFrame of them or they came as they are."""
    if isinstance(model_input, dict):
        return [model_input]
    if isinstance(model_input, pd.DataFrame):
        columns = [str(column) for column in model_input.columns]
        rows = zip(*(model_input[column].tolist() for column in model_input.columns), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]
    return [dict(request) for request in model_input]


def _messages(value: Any) -> list[dict[str, str]]:
    if value is None or isinstance(value, str | dict | float):
        raise ValueError('a request needs "messages": a list of {"role": ..., "content": ...}.')
    messages = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f'a message must be {{"role": text, "content": text}}, not {str(message)[:80]}.'
            )
        messages.append({"role": role, "content": content})
    if not messages:
        raise ValueError('"messages" is empty.')
    return messages


def _given(request: dict[str, Any], name: str, default: Any) -> Any:
    """The request's value; a DataFrame marks a value that a row does not have by None or NaN."""
    value = request.get(name)
    return default if value is None or pd.isna(value) else value


def _whole(request: dict[str, Any], name: str, default: int) -> int:
    value = _given(request, name, default)
    if isinstance(value, bool) or value != int(value):
        raise ValueError(f"{name} is {value}; it must be a whole number.")
    return int(value)


set_model(ChatModel())
