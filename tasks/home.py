"""Where loraline keeps its state: one folder, made absolute once and handed to every child process."""

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError

VARIABLE = "LORALINE_HOME"
CLOSED = 0o770
"""Mode of the servers' folders: Prefect's database holds its blocks' secrets and the key to them, MLflow's the
hashes of passwords. A group that shares them goes on to; other users of the machine are kept out."""


@dataclass(frozen=True)
class Home:
    """The folders below `$LORALINE_HOME` (default `./.loraline`)."""

    root: Path

    @property
    def store(self) -> Path:
        """Complete stage outputs."""
        return self.root / "store"

    @property
    def prefect(self) -> Path:
        """PREFECT_HOME of the embedded server and of the server that `loraline ui` starts."""
        return self.root / "prefect"

    @property
    def mlflow(self) -> Path:
        """`mlflow.db` and `artifacts/`."""
        return self.root / "mlflow"

    @property
    def cache(self) -> Path:
        """Hugging Face's modules, metrics and datasets caches, and what loraline remembers of files."""
        return self.root / "cache"

    @property
    def reports(self) -> Path:
        """`<MLflow run>/report.html`: each run's report, the one that is also among the run's artifacts."""
        return self.root / "reports"

    @property
    def runs(self) -> Path:
        """`<adapter>/<start>.json`: which stage outputs each run used."""
        return self.root / "runs"

    @property
    def locks(self) -> Path:
        """Kernel file locks."""
        return self.root / "locks"

    @property
    def logs(self) -> Path:
        """Log files of worker processes and servers."""
        return self.root / "logs"

    @property
    def work(self) -> Path:
        """Working folders of unfinished stages: checkpoints live here until the stage is complete."""
        return self.root / "work"

    @contextmanager
    def scratch(self, purpose: str) -> Iterator[Path]:
        """A new folder in `work` that does not stay behind, whatever happens inside the block."""
        folder = self.work / f"{purpose}-{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def stack_file(self) -> Path:
        """Names the running servers; absent when none runs."""
        return self.root / "stack.json"

    def environment(self) -> dict[str, str]:
        """What a child process must inherit so that nothing is written outside this folder.

        The Hub cache stays the user's: base models are large and shared between projects.
        """
        cache = self.cache / "huggingface"
        return {
            VARIABLE: str(self.root),
            "HF_MODULES_CACHE": str(cache / "modules"),
            "HF_METRICS_CACHE": str(cache / "metrics"),
            "HF_EVALUATE_CACHE": str(cache / "evaluate"),
            "HF_DATASETS_CACHE": str(cache / "datasets"),
            "MPLCONFIGDIR": str(self.cache / "matplotlib"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def prepare(self) -> None:
        """Create the folder and put its environment into this process.

        Raises: UserError when it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")
            self.locks.mkdir(exist_ok=True)
            self.logs.mkdir(exist_ok=True)
            for databases in (self.prefect, self.mlflow):
                _close(databases)
        except OSError as error:
            raise UserError(
                f"The state folder {self.root} cannot be written: {error.strerror or error}. "
                f"Name another one with --home or {VARIABLE}, or mend its permissions."
            ) from error
        os.environ.update(self.environment())


def _close(folder: Path) -> None:
    """Make a folder of databases `CLOSED` that was made before they were."""
    # Somebody else's folder is theirs to close.
    with suppress(OSError):
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & stat.S_IRWXO:
            folder.chmod(mode & ~stat.S_IRWXO)


def home() -> Home:
    """The state folder of this process; relative paths are resolved against the working directory."""
    return Home(Path(os.environ.get(VARIABLE) or ".loraline").expanduser().resolve())
