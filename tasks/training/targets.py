"""Check that every requested target module exists in the base model, and say what it is called there."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tasks.errors import UserError

# Names that different architectures give to the same part of a transformer block. A model that has
# fused projections answers to one name where another has two or three.
_SYNONYMS = (
    ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv",
     "query", "key", "value", "in_proj", "att_proj", "wq", "wk", "wv"),
    ("o_proj", "out_proj", "dense", "c_proj", "wo", "attn_out"),
    ("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h", "w1", "w3", "wi"),
    ("down_proj", "fc2", "dense_4h_to_h", "w2", "ff_out"),
)  # fmt: skip
ALL_LINEAR = "all-linear"


def unmatched(targets: str | Iterable[str], modules: Sequence[str]) -> list[str]:
    """The requested targets that name none of `modules` (full dotted names), in the order given.

    The rule is PEFT's (`check_target_module_exists`): a list entry matches a module of that name or
    one that ends with `.name`; a string is a regular expression for the whole name. `all-linear`
    always matches.
    """
    if isinstance(targets, str):
        if targets == ALL_LINEAR or any(re.fullmatch(targets, name) for name in modules):
            return []
        return [targets]
    return [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in modules)]


def check_targets(
    targets: str | Iterable[str] | None, linear: Sequence[str], model: str, head: str | None = None
) -> None:
    """Refuse targets that the model does not have.

    `linear` are the full names of the model's linear modules, `model` what a person calls it, `head`
    the full name of the output head, which adapters cannot be trained on.

    Raises: UserError that names the wrong targets, the model's own names and the likely translation.
    """
    if problem := target_problem(targets, linear, model, head):
        raise UserError(f"training.peft_config.target_modules: {problem}")


def target_problem(
    targets: str | Iterable[str] | None, linear: Sequence[str], model: str, head: str | None = None
) -> str | None:
    """What `check_targets` refuses, in the words that follow the field's name; None if nothing."""
    if targets is None:
        return None
    if not isinstance(targets, str):
        # PEFT keeps them as a set, whose order changes from process to process.
        targets = sorted(targets) if isinstance(targets, set) else list(targets)
    if not targets:
        return (
            "is empty: nothing would be trained. "
            f"Write `{ALL_LINEAR}`, or some of {_listed(own_names(linear, head))}."
        )
    try:
        missing = unmatched(targets, linear)
    except re.error as error:
        return (
            f"is a string that is no regular expression ({error}). Correct it, write a list of "
            f"names, or `{ALL_LINEAR}`."
        )
    if missing:
        return _explain(targets, missing, own_names(linear, head), model)
    if head is None or isinstance(targets, str):
        return None
    if len(unmatched(targets, [head])) < len(targets):
        return (
            f"names {head}, the output head of {model}. "
            "The loss is computed from its weight directly, so an adapter there would never be "
            f"trained. Remove it, or write `{ALL_LINEAR}`, which leaves the head out."
        )
    return None


def own_names(linear: Iterable[str], head: str | None = None) -> list[str]:
    """The distinct last parts of module names, in the model's order, without the output head."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear if name != head))


def all_linear_names(linear: Sequence[str], head: str | None = None) -> list[str] | None:
    """`all-linear` as short names, which a person and an inference server read more easily.

    PEFT writes the full name of every module. None where short names would cover other modules too.
    """
    names = own_names(linear, head)
    covered = [name for name in linear if name.rsplit(".", 1)[-1] in names]
    return names if covered == [name for name in linear if name != head] else None


def coverage(adapted: Iterable[str]) -> dict[str, int]:
    """How many modules of each name (the last part) are adapted."""
    return dict(sorted(Counter(name.rsplit(".", 1)[-1] for name in adapted).items()))


def translation(name: str, own: Sequence[str]) -> list[str]:
    """What the model most likely calls the part that other models call `name`."""
    for group in _SYNONYMS:
        if name in group and (found := [o for o in own if o in group]):
            return found
    return difflib.get_close_matches(name, own, n=1, cutoff=0.6)


def _explain(targets: str | list[str], missing: list[str], own: list[str], model: str) -> str:
    asked = [targets] if isinstance(targets, str) else targets
    lines = [
        f"{len(missing)} of {len(asked)} names match no module of {model}: {', '.join(missing)}.",
        f"Its linear modules are: {_listed(own)}.",
    ]
    renamed: dict[str, list[str]] = {}
    for name in missing:
        if found := translation(name, own):
            renamed.setdefault(", ".join(found), []).append(name)
    for new, old in renamed.items():
        lines.append(f"This model calls {', '.join(old)}: {new}.")
    if isinstance(targets, str):
        lines.append(f"A string is a regular expression for whole names; or write `{ALL_LINEAR}`.")
        return "\n".join(lines)
    wanted = {n for t in asked for n in ([t] if t not in missing else translation(t, own))}
    proposal = [name for name in own if name in wanted] or own
    lines.append(f"Write `target_modules: [{', '.join(proposal)}]`, or `{ALL_LINEAR}`.")
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
