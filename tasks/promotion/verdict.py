"""What the gate said of a registered version, as the registry keeps it, and whether it may be promoted by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import GateRefused, StageFailed
from tasks.evaluation.gate_table import gate_markdown
from tasks.markdown import cell, table
from tasks.registry import GATE_TAG, JUDGED_AGAINST_TAG, METRICS_TAG, VERDICT_TAG, json_tag


@dataclass(frozen=True)
class Verdict:
    """The stored verdict of one version."""

    name: str
    version: str
    gate: str | None
    """passed, refused, none (the recipe has no gate); None where nothing is recorded."""
    rules: tuple[Mapping[str, Any], ...]
    judged: bool
    """Whether it is recorded which champion it was judged against."""
    judged_against: str | None
    """That champion's version; None: there was none."""
    metrics: Mapping[str, Mapping[str, float]]
    """`base`, `champion`, `challenger` -> metric -> value."""

    def refuse_unless_passed(self) -> None:
        """Raises: GateRefused when the gate refused the version, or nobody ever judged it."""
        way_out = (
            f"To promote it all the same: `loraline promote {self.name} {self.version} --force "
            "--reason ...`; the log then says so."
        )
        what = f"Version {self.version} of {self.name!r}"
        if self.gate == "refused":
            raise GateRefused(f"{what} was refused by the gate.\n{self.broken()}{way_out}")
        if self.gate not in ("passed", "none"):
            raise GateRefused(
                f"{what} bears no verdict of the gate ({GATE_TAG} is {self.gate!r}). {way_out}"
            )

    def refuse_unless_judged_against(self, champion: str | None) -> None:
        """Raises: StageFailed when another one is champion than the one it was judged against."""
        if not self.holds_for(champion):
            raise StageFailed(self.why_void(champion))

    def holds_for(self, champion: str | None) -> bool:
        """Whether it was judged against this champion; where nothing is recorded, against none."""
        return self.judged_against == champion

    def why_void(self, champion: str | None) -> str:
        """The words for a champion that it was not judged against."""
        if self.judged:
            return changed(self.name, self.version, self.judged_against, champion)
        return (
            f"It is not recorded which champion version {self.version} of {self.name!r} was judged "
            f"against, and version {champion} is champion now. Nothing was moved; run the recipe with "
            "--force to judge it again, or promote it with --force and a reason."
        )

    def broken(self) -> str:
        """A line for every rule that it broke."""
        return "".join(
            f"  {rule_name(rule)}: {rule.get('why', '')}\n"
            for rule in self.rules
            if not rule.get("passed")
        )

    def table(self) -> str:
        """The verdict in markdown: passed or not, rule, numbers, interval; why; then the metrics.

        Prefect's form is 450 pixels wide: what decides comes first, and sentences stand below the table.
        """
        shown = {
            "passed": "**passed**",
            "refused": "**refused**",
            "none": "the recipe has none",
        }.get(self.gate or "", "unknown")
        judged = (
            f", judged against {f'version {self.judged_against}' if self.judged_against else 'no champion'}"
            if self.judged
            else ""
        )
        lines = [f"Gate: {shown}{judged}.", ""]
        if self.rules:
            named = [{**rule, "rule": rule_name(rule)} for rule in self.rules]
            lines += [gate_markdown({"rules": named}), ""]
        models = [model for model in ("base", "champion", "challenger") if self.metrics.get(model)]
        if models:
            names = list(self.metrics[models[-1]])
            lines.append(
                table(
                    ["metric", *models],
                    [
                        [cell(name, 200), *(_number(self.metrics[m].get(name)) for m in models)]
                        for name in names
                    ],
                )
            )
        return "\n".join(lines)


def verdict_of(name: str, version: str, tags: Mapping[str, str]) -> Verdict:
    """The verdict in a version's tags."""
    stored = json_tag(tags.get(VERDICT_TAG))
    rules = stored.get("rules")
    metrics = {
        model: values
        for model, values in json_tag(tags.get(METRICS_TAG)).items()
        if isinstance(values, dict)
    }
    against = tags.get(JUDGED_AGAINST_TAG)
    return Verdict(
        name=name,
        version=version,
        gate=tags.get(GATE_TAG),
        rules=tuple(rule for rule in rules if isinstance(rule, dict))
        if isinstance(rules, list)
        else (),
        judged=against is not None,
        judged_against=None if against in (None, "none") else against,
        metrics=metrics,
    )


def changed(name: str, version: str, before: str | None, champion: str | None) -> str:
    """The words for a champion that is not the expected one any more."""
    return (
        f"Version {version} of {name!r} was judged against "
        f"{f'version {before}' if before else 'no champion'}, but the champion is now "
        f"{f'version {champion}' if champion else 'gone'}. Nothing was moved; run the recipe again to "
        "judge it against the present champion, or promote it with --force and a reason."
    )


def rule_name(rule: Mapping[str, Any]) -> str:
    """A rule in a few words: the gate's own, or `rougeL in slice de against champion`."""
    if rule.get("rule"):
        return str(rule["rule"])
    parts = [f"suite {rule['suite']}"] if rule.get("suite") else []
    parts += [str(rule["metric"])] if rule.get("metric") else []
    parts += [f"in slice {rule['slice']}"] if rule.get("slice") else []
    parts += [f"against {rule['against']}"] if rule.get("against") else []
    return " ".join(parts) or "rule"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""
