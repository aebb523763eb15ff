"""The environment that a version was made in, as a file that pip reads: every distribution with its version."""

import platform
from importlib.metadata import distributions

from packaging.utils import canonicalize_name

ENVIRONMENT = "environment.lock"
"""Among a version's papers. What a version needs to be loaded is less, and stands in its requirements.txt."""


def environment_lock() -> str:
    """One line `name==version` for each, by name; as comments what pip does not choose."""
    # A distribution that lies on the path twice is imported from the first place.
    found = {canonicalize_name(it.name): it.version for it in reversed(list(distributions()))}
    return "\n".join(
        [
            f"# Python {platform.python_version()} ({platform.python_implementation()}), {platform.platform()}",
            *(f"{name}=={version}" for name, version in sorted(found.items())),
            "",
        ]
    )
