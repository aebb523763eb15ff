"""The Prefect task of the stage `tokenization`."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Dataset, Tokens
from tasks.base import Base
from tasks.methods import RowKind
from tasks.stage_report import ended, started
from tasks.store import Store
from tasks.tokenization.settings import TokenizationSettings


# The store is the cache: it is keyed by content and checked byte by byte.
@task(
    name="tokenize dataset",
    task_run_name="tokenize dataset: {dataset.rows[train]:,} rows",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def tokenize_dataset(
    store: Store,
    settings: TokenizationSettings,
    *,
    dataset: Dataset,
    base: Base,
    kind: RowKind = "conversations",
    force: bool = False,
) -> Tokens:
    """Token ids of every conversation, with labels on the assistant's answers.

    Raises: DataError for rows a person must correct; BaseModelError for an unusable tokenizer.
    """
    from tasks.tokenization import work

    started("tokenization")
    tokens = work.tokenize_dataset(
        store, settings, dataset=dataset, base=base, kind=kind, force=force
    )
    ended(
        "tokenization",
        tokens,
        f"{'Reused' if tokens.reused else 'Made'} {tokens.tokens['train']} tokens of "
        f"{tokens.rows['train']} training rows, {tokens.trained_tokens['train']} of them trained,",
        description="Token counts, lengths, and what is trained",
    )
    return tokens
