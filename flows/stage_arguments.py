"""What each stage of a run is given: its section of the recipe, and what the stages before it made."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.run_facts import RunFacts
from tasks.artifacts import Adapter, Artifact, Dataset, Report, Stage, Tokens, Version
from tasks.evaluation.task import evaluation_content
from tasks.methods import ROWS
from tasks.registration.provenance import Provenance
from tasks.registration.task import registration_key
from tasks.registry import EARLIER_ROWS
from tasks.seen import together
from tasks.start import CHAMPION, FROM_BASE, Beginning, asked_for, start_at_champion

if TYPE_CHECKING:
    from tasks.registry import Champion


class StageArguments:
    """The keyword arguments of each task, beside the store where a task takes one."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self.beginning = FROM_BASE
        """What the training starts from, once `begin` has decided it."""
        self.compared_with: str | None = None
        """Version of the champion that the adapter was judged against, once there is one."""
        self._judged_against: str | None = None
        self._rows_today = 0
        self._key: tuple[str, str] = ("", "")

    def dataset(self) -> dict[str, Any]:
        """What `prepare_dataset` is given."""
        recipe = self._facts.recipe
        return {
            "settings": recipe.dataset,
            "salt": recipe.split_salt,
            "recipe_folder": self._facts.recipe_path.parent,
            "force": self._forces("dataset"),
        }

    def begin(self, dataset: Dataset, champion: "Champion | None") -> None:
        """Decide, once today's rows are known, what the training starts from.

        Raises: UserError for a version that is not there, or that belongs on another base.
        """
        facts, recipe = self._facts, self._facts.recipe
        asked = None
        start = facts.named_start
        if recipe.training.init_from == CHAMPION:
            asked = asked_for(
                dataset=dataset.fingerprint,
                tokenization=recipe.tokenization.model_dump(mode="json"),
                training={
                    **recipe.training.content(facts.base.path),
                    **recipe.training.beginning,
                },
                seed=recipe.seed,
                base=facts.base.weights_sha256,
                tokenizer=facts.base.tokenizer_sha256,
            )
            start = start_at_champion(
                asked,
                champion,
                base_sha256=facts.base.weights_sha256,
                store=facts.store,
                tracker=facts.tracker,
            )
        self.beginning = Beginning(start, asked, recipe.dataset.split.seen_by_champion)

    def replay(self, dataset: Dataset) -> dict[str, Any] | None:
        """What `replay_rows` is given; None where nothing is replayed."""
        recipe, start = self._facts.recipe, self.beginning.start
        self._rows_today = dataset.rows["train"]
        if not recipe.training.replay.share or start is None:
            return None
        return {
            "cleaning": recipe.dataset.cleaning,
            "dataset": dataset,
            "start": start,
            "share": recipe.training.replay.share,
            # What was made is either the dataset without the replayed rows, or with them.
            "force": self._forces("dataset")
            or (self._facts.force and self._facts.forced["dataset"] == dataset.fingerprint),
        }

    def tokenization(self, dataset: Dataset) -> dict[str, Any]:
        """What `tokenize_dataset` is given."""
        return {
            "settings": self._facts.recipe.tokenization,
            "kind": ROWS[self._facts.recipe.training.method],
            "dataset": dataset,
            "base": self._facts.base,
            "force": self._forces("tokenization", dataset=dataset),
        }

    def comparison(self, dataset: Dataset, champion: "Champion | None") -> dict[str, Any] | None:
        """What `compare_with_champion` is given; None when there is nothing to compare with."""
        if champion is None or champion.dataset_card is None or champion.train_rows is None:
            return None
        return {
            "dataset": dataset,
            "settings": self._facts.recipe.dataset,
            "champion": f"version {champion.version}",
            "card": champion.dataset_card,
            "rows": champion.train_rows,
            "earlier": champion.earlier_rows,
        }

    def training(self, dataset: Dataset, tokens: Tokens) -> dict[str, Any]:
        """What `train_adapter` is given."""
        replayed = dataset.rows["train"] - self._rows_today
        return {
            "settings": self._facts.recipe.training,
            "seed": self._facts.recipe.seed,
            "tokens": tokens,
            "base": self._facts.base,
            "home": self._facts.home,
            "beginning": replace(self.beginning, replayed_rows=replayed),
            "force": self._forces("training", tokenization=tokens),
        }

    def evaluation(
        self, dataset: Dataset, tokens: Tokens, adapter: Adapter, champion: "Champion | None"
    ) -> dict[str, Any]:
        """What `evaluate_adapter` is given.

        An adapter that is champion already has nothing to gain over itself: it is judged as the first,
        and so is one whose champion belongs on another base.
        """
        facts = self._facts
        self._judged_against = None if champion is None else champion.version
        if champion is not None and (
            champion.adapter_sha256 == adapter.sha256 or not self._comparable(champion)
        ):
            champion = None
        self.compared_with = None if champion is None else champion.version
        return {
            "settings": facts.recipe.evaluation,
            "tokens": tokens,
            "adapter": adapter,
            "base": facts.base,
            "champion": champion and champion.folder,
            "champion_sha256": champion and champion.adapter_sha256,
            "champion_rows": self._seen_rows(adapter, champion),
            "seen_by_champion": facts.recipe.dataset.split.seen_by_champion,
            "home": facts.home,
            "recipe_folder": facts.recipe_path.parent,
            "dataset": dataset.path,
            "force": self._forces("evaluation", tokenization=tokens, training=adapter),
        }

    def registration(
        self, dataset: Dataset, tokens: Tokens, adapter: Adapter, report: Report, *, run_id: str
    ) -> dict[str, Any]:
        """What `register_adapter` is given; `run_id` is the MLflow run, complete by then."""
        facts = self._facts
        return {
            "key": self.registration_key(tokens, adapter),
            "settings": facts.recipe.registration,
            "store": facts.store,
            "tracker": facts.tracker,
            "name": facts.recipe.model_name,
            "made": Provenance(
                dataset=dataset,
                tokens=tokens,
                adapter=adapter,
                report=report,
                base=facts.base,
                recipe_path=facts.recipe_path,
                recipe_text=facts.recipe_text,
                recipe_digest=facts.recipe_digest,
                run_id=run_id,
                prefect_flow_run_id=facts.prefect.id,
                prefect_url=facts.prefect.url,
                started_from=None if (start := self.beginning.start) is None else start.uri,
                # With the version itself: a run that is killed before it promotes leaves no doubt.
                judged_against=self._judged_against,
            ),
            "max_tokens": facts.recipe.evaluation.max_new_tokens,
        }

    def promotion(self, version: Version, champion: "Champion | None") -> dict[str, Any]:
        """What `promote_version` is given."""
        facts = self._facts
        return {
            "settings": facts.recipe.promotion,
            "version": version,
            "tracker": facts.tracker,
            "judged_against": champion and champion.version,
            "comparable": self._comparable(champion),
            "gated": bool(facts.recipe.evaluation.gate),
            "recipe": str(facts.recipe_path),
            "overrides": facts.overrides,
        }

    def registration_key(self, tokens: Tokens, adapter: Adapter) -> str:
        """The registration's fingerprint: this adapter, judged by the recipe's questions."""
        facts = self._facts
        if self._key[0] != adapter.fingerprint:
            key = registration_key(
                facts.recipe.registration,
                name=facts.recipe.model_name,
                adapter=adapter,
                evaluation=evaluation_content(
                    facts.recipe.evaluation,
                    tokens=tokens,
                    adapter=adapter,
                    base=facts.base,
                    recipe_folder=facts.recipe_path.parent,
                ),
                tracker=facts.tracker,
            )
            # Once a run: it reads the files that the evaluation asks its questions from.
            self._key = (adapter.fingerprint, key)
        return self._key[1]

    def _forces(self, stage: Stage, **inputs: Artifact) -> bool:
        """Whether the stage is run though its output is complete: by `force`, and once a run.

        What it made itself from the same inputs, before an outage or a crash, counts as done.
        """
        done = self._facts.forced
        same = all(done.get(made_by) == it.fingerprint for made_by, it in inputs.items())
        return self._facts.force and not (stage in done and same)

    def _comparable(self, champion: "Champion | None") -> bool:
        return champion is None or champion.base_sha256 == self._facts.base.weights_sha256

    def _seen_rows(self, adapter: Adapter, champion: "Champion | None") -> Path | None:
        """The ids of all rows that the champion, or what the adapter started from, was ever trained on."""
        files = [adapter.path / EARLIER_ROWS]
        if champion is not None:
            files += [path for path in (champion.train_rows, champion.earlier_rows) if path]
        files = [path for path in files if path.is_file()]
        return together(files, self._facts.home.cache / "seen_rows")
