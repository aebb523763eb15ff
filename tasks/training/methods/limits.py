"""What a training method cannot do, known from the recipe alone."""

from typing import Any

from tasks.methods import PREFERENCE_METHODS, Method


def method_mistakes(method: Method, training_config: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, what is wrong) for fields that the method forbids."""
    wrong = []
    batch = training_config.get("per_device_train_batch_size")
    if isinstance(batch, int) and 0 < batch < smallest_batch(method):
        wrong.append(
            (
                "per_device_train_batch_size",
                "KTO compares each answer with those of the batch's other prompts: write 2 or more",
            )
        )
    return wrong


def smallest_batch(method: Method) -> int:
    """Rows that the method needs at once, on a process."""
    return 2 if method == "kto" else 1


def needs_one_process(method: Method) -> bool:
    """Whether the method's batches cannot be shared among processes."""
    return method in PREFERENCE_METHODS
