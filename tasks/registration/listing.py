"""The registered versions with what tells them apart: aliases, data, gate, metrics beside the base's."""

from pydantic import BaseModel

from tasks.errors import UserError
from tasks.registry import ADAPTER_TAG, GATE_TAG, METRICS_TAG, json_tag, versions_of
from tasks.tracking import Tracker


class Listed(BaseModel):
    """One line of `loraline versions`."""

    name: str
    version: str
    uri: str
    aliases: list[str]
    created_ms: int
    """Milliseconds since 1970, UTC."""
    mlflow_run_id: str
    dataset_digest: str | None
    adapter_sha256: str | None
    gate: str | None
    """passed, refused, or none where the recipe has no gate."""
    metrics: dict[str, float]
    base_metrics: dict[str, float]


def list_versions(tracker: Tracker, name: str | None = None) -> list[Listed]:
    """All versions, by name and newest first.

    Raises: UserError when `name` is given and no such model is registered, naming those that are.
    """
    client = tracker.client
    with tracker.explained("list the registered models"):
        models = []
        token: str | None = None
        while True:
            page = client.search_registered_models(page_token=token)
            models += list(page)
            token = page.token
            if not token:
                break
    known = sorted(str(model.name) for model in models)
    if name is not None and name not in known:
        raise UserError(
            f"No model named {name!r} is registered. "
            + (f"There are: {', '.join(known)}." if known else "None is: run a recipe first.")
        )
    listed = []
    for model in sorted(models, key=lambda model: str(model.name)):
        if name is not None and model.name != name:
            continue
        # The search itself leaves the aliases of versions empty.
        aliases: dict[str, list[str]] = {}
        for alias, number in model.aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        for version in reversed(versions_of(tracker, str(model.name))):
            number, tags = str(version.version), version.tags
            metrics = json_tag(tags.get(METRICS_TAG))
            listed.append(
                Listed(
                    name=str(model.name),
                    version=number,
                    uri=f"models:/{model.name}/{number}",
                    aliases=sorted(aliases.get(number, [])),
                    created_ms=int(version.creation_timestamp),
                    mlflow_run_id=version.run_id or "",
                    dataset_digest=tags.get("loraline.dataset_digest"),
                    adapter_sha256=tags.get(ADAPTER_TAG),
                    gate=tags.get(GATE_TAG),
                    metrics=metrics.get("challenger") or {},
                    base_metrics=metrics.get("base") or {},
                )
            )
    return listed
