"""The recipe's section `registration`: under which name and with which words an adapter is registered."""

import warnings
from typing import Literal

from pydantic import Field

from tasks.settings import Settings

with warnings.catch_warnings():
    # What the field hides is `abc.ABCMeta.register`, which no settings class needs.
    warnings.filterwarnings("ignore", message='Field name "register"')

    class RegistrationSettings(Settings):
        """How the adapter becomes a version in the MLflow registry."""

        model_name: str | None = Field(default=None, pattern=r"^[^/:]+$")
        """Registered model. Default: the recipe's name."""
        experiment: str | None = None
        """MLflow experiment. Default: the recipe's name."""
        description: str | None = None
        """First paragraph of the version's description: what this adapter is for."""
        tags: dict[str, str] = Field(default={})
        """More tags for the version."""
        register: Literal["passed", "always"] = "passed"
        """Which adapters become versions: those that the gate let pass, or all. The version of a refused one
        gets no alias, and `loraline promote` takes it with --force only."""
