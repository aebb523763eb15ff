"""Whether the steps that a worker takes before a run can be taken: it finds out only when a run is due."""

import inspect
from typing import Any


def mistakes_of_step(step: dict[str, Any]) -> list[str]:
    """What the worker would fail at; a step whose packages it installs itself (`requires`) may be unknown here."""
    from prefect.deployments.steps.core import RESERVED_KEYWORDS
    from prefect.utilities.importtools import import_object

    if len(step) != 1:
        return [f"a step has one key, the name of its function, and this one has {sorted(step)}"]
    ((name, inputs),) = step.items()
    if not isinstance(inputs, dict):
        return [f"{name}: what it is called with is no mapping. Write {{}} where it needs nothing"]
    try:
        function = import_object(name)
    except Exception as error:
        # To import it is to run somebody's code. The worker installs `requires` for an ImportError alone.
        if isinstance(error, ImportError) and inputs.get("requires"):
            return []
        return [f"there is no function {name} ({type(error).__name__}: {error})"]
    if not callable(function):
        return [f"{name} is no function"]
    try:
        inspect.signature(function).bind(
            **{key: value for key, value in inputs.items() if key not in RESERVED_KEYWORDS}
        )
    except TypeError as error:
        return [f"{name}: {error}"]
    return []
