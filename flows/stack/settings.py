"""What a stack was started with; its parts, `loraline status` and `loraline down` read it again."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from tasks.errors import UserError
from tasks.files import write_json
from tasks.home import Home
from tasks.settings import Settings

POSTGRES = "LORALINE_POSTGRES"
"""`postgresql://user:password@host:5432`, without a database: both servers then keep their data there.

It may hold a password: it is read from the environment and written nowhere.
"""
Database = Literal["sqlite", "postgresql"]
Port = Annotated[int, Field(ge=1, le=65535)]


class StackSettings(Settings):
    """The choices of `loraline up`."""

    host: str = "127.0.0.1"
    """Address that both servers listen on. Any but loopback needs passwords, see `flows.stack.exposure`."""
    prefect_port: Port = 4200
    """Port of Prefect's pages and API; workers and clients must be started again after a change."""
    mlflow_port: Port = 5000
    """Port of MLflow's pages and API; addresses in reports and tags that were written before keep the old one."""
    trainings: Annotated[int, Field(ge=1, le=64)] = 1
    """Runs of the pool `loraline` at once. More than there are GPUs only wait for one of them."""
    project: Path
    """Folder whose recipes are deployed, and in which flows run: paths in recipes are seen from here."""

    database: Database | None = None
    """Where both servers keep their data. A start that would use the other kind is refused: it holds nothing."""
    database_server: str = ""
    """Host and port of PostgreSQL, of which only a change is told; empty with SQLite."""
    machine: str = ""
    """The machine's name when the stack started, which its workers bear: it may change, and they keep it."""
    state_folder: Path | None = None
    """Where the home lay when its stack began; addresses of MLflow's files begin so. None: before the first start."""

    @property
    def client_host(self) -> str:
        """Where this machine's own clients reach the servers."""
        wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        host = wildcard.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    @property
    def prefect_url(self) -> str:
        """Prefect's pages."""
        return f"http://{self.client_host}:{self.prefect_port}"

    @property
    def prefect_api(self) -> str:
        """Prefect's API."""
        return f"{self.prefect_url}/api"

    @property
    def mlflow_url(self) -> str:
        """MLflow's pages and API."""
        return f"http://{self.client_host}:{self.mlflow_port}"


def folder(home: Home) -> Path:
    """Where the supervisor keeps what it needs."""
    return home.root / "stack"


def has_settings(home: Home) -> bool:
    """Whether the home has had a stack, or was given one for the next boot."""
    return _file(home).is_file()


def _file(home: Home) -> Path:
    return folder(home) / "settings.json"


def write_settings(home: Home, settings: StackSettings) -> None:
    """Keep the settings for whoever asks while the stack runs."""
    folder(home).mkdir(parents=True, exist_ok=True)
    write_json(_file(home), settings.model_dump(mode="json"))


def read_settings(home: Home) -> StackSettings | None:
    """The settings of the last `loraline up` of this home, None when there was none.

    Raises: UserError when the file is damaged.
    """
    path = _file(home)
    try:
        return StackSettings.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). `loraline down` stops what runs; then delete the file "
            "and start again with `loraline up`, on PostgreSQL with --database postgresql."
        ) from error
