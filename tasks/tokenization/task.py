"""The Prefect task of the stage `tokenization`."""

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Dataset, Tokens
from tasks.base import Base
from tasks.progress import announce
from tasks.store import Store
from tasks.tokenization.settings import TokenizationSettings


# The store is the cache: it is keyed by content and checked byte by byte.
@task(name="tokenize dataset", persist_result=False, cache_policy=NO_CACHE)
def tokenize_dataset(
    store: Store,
    settings: TokenizationSettings,
    *,
    dataset: Dataset,
    base: Base,
    force: bool = False,
) -> Tokens:
    """Token ids of every conversation, with labels on the assistant's answers.

    Raises: DataError for rows a person must correct; BaseModelError for an unusable tokenizer.
    """
    from tasks.tokenization import work

    logger = get_run_logger()
    announce("stage", stage="tokenization", state="started")
    tokens = work.tokenize_dataset(store, settings, dataset=dataset, base=base, force=force)
    logger.info(
        "%s %d tokens of %d training rows, %d of them trained, in %.1f s",
        "Reused" if tokens.reused else "Made",
        tokens.tokens["train"],
        tokens.rows["train"],
        tokens.trained_tokens["train"],
        tokens.seconds,
    )
    create_markdown_artifact(
        (tokens.path / "summary.md").read_text(encoding="utf-8"),
        key="loraline-tokenization",
        description="Token counts, lengths, and what is trained",
    )
    announce(
        "stage",
        stage="tokenization",
        state="reused" if tokens.reused else "done",
        seconds=tokens.seconds,
    )
    return tokens
