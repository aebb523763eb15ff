"""The recipe's list `dataset.sources`: the kinds of sources and their fields."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from tasks.dataset.column_settings import ChatFormat, ColumnsSettings
from tasks.dataset.sql_text import only_reads
from tasks.settings import Settings

FileKind = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"]
_SECRET = re.compile(
    r"(^|[_-])(key|secret|token|password|passwd|credentials?|signature|sig|sas)s?($|[_-])|access_?key",
    re.IGNORECASE,
)


class SourceSettings(Settings):
    """What every kind of source has."""

    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Training rows of the sources stand in proportion to their weights (1 where only others have one): the source with the fewest rows for its weight gives all, the others those with the smallest hashes; test rows all stay. Default: every row is trained."""
    max_rows: int | None = Field(default=None, ge=1)
    """Keep the rows with so many smallest hashes. Their order does not matter; when the source grows by a tenth, about a tenth of the choice, test rows too, gives way to new rows. Default: all."""


class TableSource(SourceSettings):
    """What every source of rows with columns has: how columns become conversations."""

    chat_format: ChatFormat | None = None
    """The format to read where the columns fit more than one. Default: the one that the first row's columns tell."""
    columns: ColumnsSettings | None = None
    """Templates that make the turns, instead of a known format."""
    group: str | None = None
    """Column whose value is the row's group (a document or conversation id): a group is never split. Default: the prompt."""
    time: str | None = None
    """Column that says when the row was made (ISO 8601, or seconds since 1970): a split by time needs it."""
    slice: str | None = None
    """Column whose value the dataset's card counts rows under, for example a language or a product."""

    @model_validator(mode="after")
    def _one_reading(self) -> "TableSource":
        if self.columns is not None and self.chat_format is not None:
            raise ValueError("a source has either `columns` or `chat_format`")
        return self


class FileTable(TableSource):
    """What sources that lie in files have."""

    path: str
    """A file, a folder or a pattern such as `chats/*.jsonl`, relative to the recipe; or a URL: `s3://`, `gs://`, `https://`."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the URL's fsspec file system, for example `{endpoint_url: ...}`. Credentials come from the environment, never from here."""

    @field_validator("path")
    @classmethod
    def _no_secret_in_url(cls, path: str) -> str:
        if "://" in path:
            parts = urlsplit(path)
            names = [name for name, _ in parse_qsl(parts.query)]
            if parts.password or any(map(_SECRET.search, names)):
                # The value is not repeated: messages end in logs.
                raise ValueError(
                    "the URL holds a password or a signature. Credentials come from the environment "
                    "(for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)"
                )
        return path

    @field_validator("storage_options")
    @classmethod
    def _no_secret_in_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        if found := _secret_names(options):
            raise ValueError(
                f"{', '.join(found)}: a recipe holds no credentials. They come from the environment "
                "(for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)"
            )
        return options


class FilesSource(FileTable):
    """Files of chat rows: JSONL, JSON, CSV, TSV, Parquet or Arrow, plain or compressed (.gz, .zst)."""

    type: Literal["files"]
    format: FileKind | None = None
    """How the files are written. Default: their suffix tells."""


class JsonlSource(FileTable):
    """JSONL files of chat conversations, prompt/completion pairs or instruction/input/output rows."""

    type: Literal["jsonl"]

    @property
    def format(self) -> FileKind:
        """Whatever the suffix."""
        return "jsonl"


class HuggingFaceSource(TableSource):
    """A dataset of the Hugging Face Hub, read at one commit."""

    type: Literal["huggingface"]
    id: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")
    """The dataset's id, for example `tatsu-lab/alpaca`."""
    config: str | None = None
    """The configuration (subset). Default: the dataset's own default."""
    split: str = Field(default="train", pattern=r"^[\w.-]+$")
    """The split to read."""
    revision: str = "main"
    """Branch, tag or commit. A branch is resolved to its commit at each run, and the rows follow it; write a commit to stay."""


class SqlSource(TableSource):
    """The rows of an SQL query, through SQLAlchemy."""

    type: Literal["sql"]
    query: str = Field(min_length=1)
    """A SELECT (or WITH, or VALUES), which is run without the right to write. Give it an ORDER BY, unless there is a `watermark`: databases promise no order without one."""
    url_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the database's SQLAlchemy URL: a recipe holds no credentials."""
    database: str | None = None
    """An SQLite file, relative to the recipe; instead of `url_variable`."""
    name: str = Field(default="sql", pattern=r"^[\w.-]+$")
    """What messages and the dataset's card call the source."""
    watermark: str | None = None
    """Column of the result that only grows (an id, a time of change). A run then asks for new rows only, and again for the newest of those it holds (`overlap_seconds`, `overlap_rows`): of them those that were deleted go, with a warning, unless nothing comes at all. Earlier ones stay as they were fetched: a row that is deleted stays, and a row that is changed stands beside its old self, unless there is a `key`."""
    overlap_seconds: float = Field(default=86_400.0, ge=0, allow_inf_nan=False)
    """Where the `watermark` is a time: rows from so long before the highest are fetched again, for a row is seen when its transaction is committed, and often bears the time at which that began. Shorter: less to fetch; what a transaction that was open for longer adds is never found. 0: a row that was fetched and then deleted stays."""
    overlap_rows: int = Field(default=10_000, ge=0)
    """Where the `watermark` is no time: so many of the last rows are fetched again, for an id is taken before its row is committed. Fewer: less to fetch; a row is never found when more rows than these were committed, and read, between its taking the id and its commit. 0: a row that was fetched and then deleted stays."""
    key: str | None = None
    """Column of the result that names a row, with a `watermark` that grows when a row is changed: of rows with one key only the newest is used. Default: rows are never changed."""
    chunk_rows: int = Field(default=10_000, ge=1)
    """Rows fetched at once; memory grows with it."""

    @field_validator("query")
    @classmethod
    def _reads(cls, query: str) -> str:
        if not only_reads(query):
            raise ValueError("a source only reads: begin the query with SELECT, WITH or VALUES")
        return query

    @model_validator(mode="after")
    def _newest_of_a_key(self) -> "SqlSource":
        if self.key is not None and self.watermark is None:
            raise ValueError(
                "`key` needs a `watermark`, which says which of its rows is the newest; a query that is "
                "asked anew each time gives each row as it is"
            )
        return self

    @model_validator(mode="after")
    def _one_place(self) -> "SqlSource":
        if (self.url_variable is None) == (self.database is None):
            raise ValueError("an sql source has either `url_variable` or `database`")
        return self


class PythonSource(SourceSettings):
    """Python code: one conversation for each documented function or class."""

    type: Literal["python_source"]
    package: str | None = None
    """An installed package, or `stdlib` for the running Python's standard library."""
    path: str | None = None
    """A folder of .py files, relative to the recipe; instead of `package`."""
    max_code_characters: int = Field(default=600, ge=80)
    """Budget for the code shown in the user's turn; a longer body is cut at a line's end."""

    @model_validator(mode="after")
    def _one_place(self) -> "PythonSource":
        if (self.package is None) == (self.path is None):
            raise ValueError("a python_source has either `package` or `path`")
        return self


def _secret_names(options: dict[str, Any]) -> list[str]:
    found = []
    for name, value in options.items():
        if _SECRET.search(str(name)):
            found.append(str(name))
        elif isinstance(value, dict):
            found += _secret_names(value)
    return found


Source = Annotated[
    FilesSource | JsonlSource | HuggingFaceSource | SqlSource | PythonSource,
    Field(discriminator="type"),
]
