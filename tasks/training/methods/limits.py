"""What a training method cannot do, known from the recipe alone."""

from typing import Any

from tasks.methods import PREFERENCE_METHODS, Method


def method_mistakes(method: Method, training_config: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, what is wrong) for fields that the method forbids."""
    wrong = []
    if method == "kto" and training_config.get("per_device_train_batch_size") == 1:
        wrong.append(
            (
                "per_device_train_batch_size",
                "KTO compares each answer with those of the batch's other prompts: write 2 or more",
            )
        )
    return wrong


def needs_one_process(method: Method) -> bool:
    """Whether the method's batches cannot be shared among processes."""
    return method in PREFERENCE_METHODS
