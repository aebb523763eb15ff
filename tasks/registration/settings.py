"""The recipe's section `registration`: under which name and with which words an adapter is registered."""

from pydantic import Field

from tasks.settings import Settings


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
