"""One gate rule judged: by all rows, or by each of their slices."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tasks.evaluation.gate_evidence import Evidence, Reference, RowSet
from tasks.evaluation.gate_numbers import Measured, Numbers, parts
from tasks.evaluation.gate_settings import GateRule
from tasks.evaluation.gate_words import rule_in_words, why, why_of_slices
from tasks.evaluation.paired import Adjustment


class Measurements:
    """Every set of rows that rules look at, each measured once."""

    def __init__(self, rules: Sequence[GateRule], evidence: Evidence, resamples: int) -> None:
        sets = [evidence.test, *evidence.suites.values()]
        self._metrics = {rule.metric for rule in rules if rule.metric}
        self._metrics |= {rows.main_metric for rows in sets}
        self._resamples = resamples
        self._found: dict[tuple[str, str], Measured] = {}

    def of(self, suite: str, label: str, rows: RowSet) -> Measured:
        """The rows of a suite (empty: the test rows), or of one slice of them."""
        if (suite, label) not in self._found:
            self._found[suite, label] = Measured(rows, self._metrics, self._resamples)
        return self._found[suite, label]


class JudgedRule:
    """One rule with its numbers: of all rows, or of each slice."""

    def __init__(self, rule: GateRule, evidence: Evidence, measurements: Measurements) -> None:
        self.rule = rule
        self.adjustment: Adjustment | None = None
        """Of its p-values, where it claims a gain."""
        self.metric = rule.metric or ""
        self.against: Reference | None = None
        self.note = ""
        self.numbers: dict[str, Numbers] = {}
        """Slice (empty for all rows) -> its numbers."""
        self.not_judged: dict[str, int] = {}
        """Slice -> its rows, which are too few."""
        self.problem = self._measure(evidence, measurements)

    @property
    def p(self) -> float:
        """Of the whole rule: every slice must hold, so its weakest speaks for all of them."""
        if self.problem or not self.numbers:
            return 1.0
        return max(numbers.p for numbers in self.numbers.values())

    def entry(self, claims: int) -> dict[str, Any]:
        """The rule's line of the verdict. `claims`: gains claimed at once, that p-values are corrected for."""
        rule = self.rule
        found: dict[str, Any] = rule.model_dump(exclude_none=True, exclude={"test"})
        found |= {"metric": self.metric, "rule": rule_in_words(rule, self.metric)}
        if rule.compares:
            found["against"] = rule.opponent
        if rule.level is not None:
            found |= {"confidence": rule.level, "test": rule.test}
        if self.against is not None:
            found["judged_against"] = self.against
        if self.problem:
            return found | {"passed": False, "why": self.problem + self.note}
        verdicts = {label: self._verdict(one, claims) for label, one in self.numbers.items()}
        if rule.slice is None:
            return found | verdicts[""]
        slices = [{"slice": label, **verdict} for label, verdict in verdicts.items()]
        worst = min(slices, key=lambda one: (one["passed"], self._room(one)))
        numbers = {k: v for k, v in worst.items() if k not in ("slice", "why", "passed")}
        return found | {
            **numbers,
            "worst_slice": worst["slice"],
            "slices": slices,
            "not_judged": self.not_judged,
            "passed": all(one["passed"] for one in slices),
            "why": why_of_slices(slices, worst, self.not_judged, rule.least_rows) + self.note,
        }

    def _measure(self, evidence: Evidence, measurements: Measurements) -> str:
        """Find the numbers; why there are none, or an empty text."""
        rule = self.rule
        rows = evidence.test if rule.suite is None else evidence.suites.get(rule.suite)
        if rows is None:
            there = ", ".join(sorted(evidence.suites)) or "none"
            return f"the suite {rule.suite} was not measured (measured: {there})"
        self.metric = rule.metric or rows.main_metric
        direction = evidence.direction.get(self.metric, 0)
        if rule.compares:
            if problem := self._opponent(evidence):
                return problem
            if not direction:
                return f"{self.metric} has no better direction, so nothing can be gained in it"
        wanted = [("", rows)] if rule.slice is None else list(parts(rows, rule.slice))
        if not wanted:
            there = ", ".join(sorted(rows.slices)) or "none"
            return f"no slice is {rule.slice} (the rows are sliced by: {there})"
        for label, part in wanted:
            self._look(label, measurements.of(rule.suite or "", label, part), direction)
            if label == "" and (problem := self.numbers[""].problem):
                return problem
        if broken := [n.problem for n in self.numbers.values() if n.problem]:
            return broken[0]
        if not self.numbers:
            most = max(self.not_judged.values())
            return f"no slice has the {rule.least_rows} rows that are asked for; the largest has {most}"
        if rule.slice is None and (count := self.numbers[""].rows) < rule.least_rows:
            return f"{count} rows are too few to judge by; the rule asks for {rule.least_rows} (`min_rows`)"
        return ""

    def _look(self, label: str, measured: Measured, direction: int) -> None:
        least = self.rule.least_rows
        if label and measured.rows.rows < least:
            self.not_judged[label] = measured.rows.rows
            return
        if self.against is None:
            found, models = measured.bound(self.metric), ["challenger"]
        else:
            found = measured.comparison(self.rule, self.metric, self.against, direction)
            models = ["challenger", self.against]
        # A metric that was not measured at all is no matter of rows: that refuses.
        if label and found.rows < least and all(measured.has(m, self.metric) for m in models):
            self.not_judged[label] = found.rows
        else:
            self.numbers[label] = found

    def _opponent(self, evidence: Evidence) -> str:
        rule = self.rule
        if rule.opponent == "champion" and evidence.champion_problem is not None:
            return f"the champion could not be scored: {evidence.champion_problem}"
        self.against = rule.opponent
        if self.against == "champion" and not evidence.has_champion:
            self.against = "base"
            self.note = " (there is no champion yet, so the base takes its place)"
        return ""

    def _verdict(self, numbers: Numbers, claims: int) -> dict[str, Any]:
        rule, values = self.rule, asdict(numbers)
        found = {k: values[k] for k in ("rows", "value", "reference", "gain", "low", "high")}
        found["differing_rows"] = numbers.differing
        p = None
        if rule.level is not None:
            found["p"] = p = numbers.p
            if self.adjustment is not None:
                # A slice is no claim of its own: the rule is, and its weakest slice speaks for it.
                found["p_corrected"] = p = self.adjustment.of(numbers.p)
        passed = self._passes(numbers, p)
        note = "" if rule.slice is not None else self.note
        text = why(rule, numbers, self.against, p, claims, passed=passed)
        return {k: v for k, v in found.items() if v is not None} | {
            "passed": passed,
            "why": text + note,
        }

    def _passes(self, numbers: Numbers, p: float | None) -> bool:
        rule = self.rule
        if not rule.compares:
            assert numbers.value is not None
            return (rule.min is None or numbers.value >= rule.min) and (
                rule.max is None or numbers.value <= rule.max
            )
        assert numbers.gain is not None
        if rule.level is None:
            return numbers.gain >= rule.margin
        assert p is not None
        return p <= (1 - rule.level) / 2

    def _room(self, verdict: dict[str, Any]) -> float:
        """How far a slice is from failing, to find the worst among those alike."""
        if "gain" in verdict:
            return float(verdict["gain"])
        rule, value = self.rule, verdict["value"]
        room = [value - rule.min] if rule.min is not None else []
        room += [rule.max - value] if rule.max is not None else []
        return float(min(room))
