"""How the columns of one source become conversations, decided by its first row and held to."""

import re
from datetime import UTC, date, datetime
from typing import Any

from tasks.dataset.reading.columns import PARTS, ColumnTemplates
from tasks.dataset.reading.conversations import Conversation, completed
from tasks.dataset.reading.counts import TableCounts
from tasks.dataset.reading.formats import WAYS_OUT, Format, format_named, format_of
from tasks.dataset.reading.problem import RowProblem, check_characters, kind_of
from tasks.dataset.rows import Row, default_group
from tasks.dataset.source_settings import TableSource

_SECONDS = re.compile(r"[+-]?\d{9,}(\.\d+)?")
"""A text of so many digits is no date of ISO 8601: tables of text hold seconds like this."""
MILLISECONDS_FROM = 1e11
"""A larger number of seconds lies beyond the year 5000: it counts milliseconds."""


class UnknownFormat(RowProblem):
    """The first row of a source has no known format: none of its rows can be read."""


class Mapping:
    """Turns rows with columns into rows of the dataset.

    Raises: DataError when the recipe's templates are not Jinja.
    """

    def __init__(self, source: TableSource, counts: TableCounts) -> None:
        self._source, self._counts = source, counts
        self._templates = ColumnTemplates(source.columns) if source.columns else None
        self._format: Format | None = None
        self._first = ""
        self._started = False

    def rows(self, value: dict[str, Any], place: str) -> list[Row]:
        """The row's conversations; `place` is `file:line`, free of folders.

        Raises: RowProblem; UnknownFormat when the first row of all has none.
        """
        if not self._started:
            self._begin(value, place)
        group = self._group(value)
        time = self._time(value) if self._source.time else None
        part = self._slice(value) if self._source.slice else None
        return [
            Row(
                messages=tuple(conversation.messages),
                group=group or self._default_group(value, conversation),
                source=place,
                tools=conversation.tools,
                rejected=conversation.rejected,
                desirable=conversation.desirable,
                text=conversation.text,
                time=time,
                slice=part,
            )
            for conversation in self._conversations(value)
        ]

    def _begin(self, value: dict[str, Any], place: str) -> None:
        counts, source = self._counts, self._source
        used = {source.group, source.time, source.slice}
        if self._templates is not None:
            assert source.columns is not None
            counts.chat_format = "columns"
            texts = {part: getattr(source.columns, part) for part in PARTS}
            counts.mapping = {part: text for part, text in texts.items() if text is not None}
            used |= self._templates.used
        else:
            self._format = form = self._detected(value)
            counts.chat_format = form.name
            counts.mapping = _described(form, value)
            used |= {*form.columns, *form.optional}
        for part in ("group", "time", "slice"):
            if column := getattr(source, part):
                counts.mapping[part] = column
        counts.ignored_columns = tuple(column for column in value if column not in used)
        self._first, self._started = place, True

    def _detected(self, value: dict[str, Any]) -> Format:
        if self._source.chat_format is not None:
            return format_named(self._source.chat_format)
        try:
            return format_of(value)
        except RowProblem as problem:
            raise UnknownFormat(f"{problem} {WAYS_OUT}") from problem

    def _conversations(self, value: dict[str, Any]) -> list[Conversation]:
        if self._templates is not None:
            return self._templates.read(value)
        form = self._format
        assert form is not None
        for column in form.columns:
            if column not in value:
                raise RowProblem(self._other_format(form, value))
        if form.unread is not None and self._source.chat_format is None:
            form.unread(value, f"since {self._first}")
        return completed(form.read(value, self._counts.unused_keys), value, form.optional)

    def _other_format(self, form: Format, value: dict[str, Any]) -> str:
        missing = " and no ".join(column for column in form.columns if column not in value)
        reason = (
            f"no column {missing}: the source is {form.name} since {self._first}; "
            f"columns here: {', '.join(value) or 'none'}"
        )
        try:
            other = format_of(value)
        except RowProblem:
            return reason
        if other is form:
            return reason
        return f"{reason}. This row is {other.name}: one file holds one format, split it"

    def _default_group(self, value: dict[str, Any], conversation: Conversation) -> str:
        if self._format is not None and self._format.group is not None:
            return self._format.group(value)
        return default_group(conversation.messages, conversation.text)

    def _group(self, value: dict[str, Any]) -> str | None:
        column = self._source.group
        if column is None:
            return None
        key = value.get(column)
        if isinstance(key, float) and key.is_integer():
            # Whole numbers with a null among them are floats in pandas and Parquet: 3.0 is group 3.
            key = int(key)
        if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
            raise RowProblem(
                f"the group column {column!r} must hold text or a whole number, this is "
                f"{'empty' if key == '' else kind_of(key)}"
                if column in value
                else _no_column(column, "group", value)
            )
        group = f"{column}-{key}"
        check_characters(group, column)
        return group

    def _slice(self, value: dict[str, Any]) -> str:
        column = self._source.slice
        assert column is not None
        if column not in value:
            raise RowProblem(_no_column(column, "slice", value))
        key = value[column]
        if isinstance(key, dict | list):
            raise RowProblem(f"the slice column {column!r} must hold text, this is {kind_of(key)}")
        text = "" if key is None else str(key)
        check_characters(text, column)
        # No value is a slice too: the card counts its rows like all others.
        return text or "(none)"

    def _time(self, value: dict[str, Any]) -> str:
        column = self._source.time
        assert column is not None
        if column not in value:
            raise RowProblem(_no_column(column, "time", value))
        return _moment(value[column], column)


def _moment(value: object, column: str) -> str:
    """ISO 8601 in UTC, always with the same number of digits, so that texts sort as times do."""
    wanted = "time (ISO 8601, or seconds since 1970)"
    try:
        if isinstance(value, str) and _SECONDS.fullmatch(value.strip()):
            value = float(value)
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            seconds = value / 1000 if abs(value) > MILLISECONDS_FROM else value
            value = datetime.fromtimestamp(seconds, UTC)
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            # A time without a zone is taken for UTC: the machine's own zone must not decide a split.
            zoned = value if value.tzinfo else value.replace(tzinfo=UTC)
            return zoned.astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError, OSError) as error:
        raise RowProblem(f"the time column {column!r} holds no {wanted}: {error}") from error
    what = "empty" if value == "" else kind_of(value)
    raise RowProblem(f"the time column {column!r} must hold a {wanted}, this is {what}")


def _no_column(column: str, part: str, value: dict[str, Any]) -> str:
    return (
        f"no column {column!r}, which dataset.sources[].{part} names; "
        f"columns here: {', '.join(value)}"
    )


def _described(form: Format, value: dict[str, Any]) -> dict[str, str]:
    """Part of a conversation -> the columns it comes from, as far as this row has them."""
    mapping = dict(form.shows)
    if "input" in form.optional and "input" in value:
        mapping["user"] += " + input"
    for column in ("system", "tools"):
        if column in form.optional and column in value:
            mapping[column] = column
    return mapping
