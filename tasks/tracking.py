"""The MLflow run of a pipeline run: where it is tracked, and everything that is written into it."""

import json
import logging
import os
import re
import shlex
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from filelock import FileLock

from tasks import run_lease
from tasks.addresses import unreachable, without_passwords
from tasks.errors import LoralineError, ServerAway, StageFailed, UserError
from tasks.home import CLOSED, Home
from tasks.metric_writer import MetricWriter, Point
from tasks.outage import is_outage
from tasks.stack import refuse_own_sqlite, running
from tasks.tracking_database import opened, prepare_database

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

UI_URL = "http://127.0.0.1:5000"
"""Where `loraline ui` serves this folder's MLflow."""
LONGEST_VALUE = 6000
"""MLflow stores at most this many characters of a parameter."""
LONGEST_DIGEST = 36
"""MLflow stores at most this many characters of a dataset's digest; the whole one is in its profile."""
OPENING_TAG = "loraline.opening"
"""The experiment's id and what no other opening of a run has: an answer may be lost, and MLflow's client
asks again."""
_log = logging.getLogger(__name__)


def tracking_uri(home: Home) -> str:
    """`MLFLOW_TRACKING_URI`, else the running server named in `stack.json`, else this home's SQLite.

    Raises: UserError for a folder of files as the store, which MLflow 3 has given up, and where SQLite is
    not what has this home's records.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if uri:
        if uri.startswith("file:") or "://" not in uri:
            raise UserError(
                f"MLFLOW_TRACKING_URI is {uri}, a folder of files; MLflow has no registry there. "
                "Use a server (http://host:port) or a database (sqlite:////folder/mlflow.db), "
                "or unset it: loraline then keeps its own database."
            )
        return uri
    if (url := _stack_url(home)) is not None:
        return url
    refuse_own_sqlite(home)
    return _sqlite_uri(home)


def refuse_unreachable(home: Home) -> None:
    """Ask once whether the tracking server is there; MLflow's own clients ask for minutes.

    To be called before a stage runs. In the middle of a run the clients' patience bridges an outage.

    Raises: ServerAway when nobody answers, UserError as `tracking_uri` does.
    """
    uri = tracking_uri(home)
    if uri.startswith("sqlite:") or (why := unreachable(uri)) is None:
        return
    raise ServerAway(
        f"The MLflow server {without_passwords(uri)}, named by MLFLOW_TRACKING_URI, does not answer "
        f"({without_passwords(why)}). Start it, correct the address, or take the setting away: "
        f"loraline then keeps its own database ({home.mlflow / 'mlflow.db'})."
    )


def reachable_tracker(home: Home) -> "Tracker":
    """The tracker of a home that is ready to be written to, its server asked once.

    Raises: UserError and StageFailed, as `Home.prepare` and `refuse_unreachable` do.
    """
    home.prepare()
    refuse_unreachable(home)
    return Tracker(home)


class Tracker:
    """Writes one MLflow run per pipeline run, by explicit run id and never through an active run.

    Every method raises StageFailed, with the server's name and the ways out, when MLflow does not
    answer or refuses.
    """

    def __init__(self, home: Home, uri: str | None = None) -> None:
        self.home = home
        self.uri = uri or tracking_uri(home)
        self._leases: dict[str, FileLock] = {}

    @property
    def owns_artifacts(self) -> bool:
        """Whether runs and artifacts live in this home's folder, with or without a server before it."""
        return self.uri in (_sqlite_uri(self.home), _stack_url(self.home))

    @property
    def ui_url(self) -> str:
        """Where a person looks at runs and versions."""
        return without_passwords(self.uri).rstrip("/") if self.uri.startswith("http") else UI_URL

    @cached_property
    def client(self) -> "MlflowClient":
        """The MLflow client; the first one on a SQLite file creates and migrates it under a lock."""
        os.environ.update(
            {k: v for k, v in self.home.environment().items() if k.endswith("TELEMETRY")}
        )
        # Five attempts bridge about a minute of outage; MLflow's own seven take more than four.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient

        if not self.uri.startswith("sqlite:"):
            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        database = Path(urlsplit(self.uri).path[1:])
        database.parent.mkdir(CLOSED, parents=True, exist_ok=True)
        self.home.locks.mkdir(parents=True, exist_ok=True)
        for name in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Two first clients that migrate one file at the same time leave it half migrated.
        with (
            FileLock(self.home.locks / "mlflow-database.lock"),
            self.explained("open the database"),
        ):
            prepare_database(database)
            return opened(self.uri)

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn whatever MLflow raises inside the block into a StageFailed that names the server.

        ServerAway where it did not answer.
        """
        try:
            yield
        except LoralineError:
            raise
        except Exception as error:
            reason = without_passwords(str(error) or error.__class__.__name__)
            kind = ServerAway if is_outage(error) else StageFailed
            # With a password in the address, the libraries' own words stand in no log.
            raise kind(
                f"MLflow at {without_passwords(self.uri)} could not {doing}: {reason}. "
                "Check that the server runs and that this machine may use it, then run the same recipe "
                "again: complete stages are not repeated."
            ) from (error if without_passwords(self.uri) == self.uri else None)

    def open_run(
        self,
        experiment: str,
        run_name: str,
        *,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> str:
        """Create the run of this pipeline run; returns its id.

        Runs that processes of this home left without a final status when they were killed are closed
        as KILLED first.
        """
        client = self.client
        self._close_left()
        doing = f"open a run in the experiment {experiment!r}"
        with self.explained(doing):
            experiment_id = self.experiment_id(experiment)
        opening = f"{experiment_id}-{uuid.uuid4().hex}"
        with run_lease.until_done(self.home, opening, "opening"):
            with self.explained(doing):
                run = client.create_run(
                    experiment_id,
                    run_name=run_name,
                    tags={
                        "mlflow.user": current_user(),
                        "mlflow.source.name": "loraline",
                        "mlflow.source.type": "JOB",
                        **{key: str(value) for key, value in tags.items()},
                        OPENING_TAG: opening,
                    },
                )
            run_id = str(run.info.run_id)
            self._leases[run_id] = run_lease.take(self.home, run_id)
            self.close_opened(opening, but=run_id)
        self.log_params(run_id, params)
        return run_id

    def _close_left(self) -> None:
        # A lease stays until MLflow took the end of its run: nobody else knows of it.
        closers: dict[run_lease.Kind, Callable[[str], object]] = {
            "mlflow-run": self.close_abandoned,
            "opening": self.close_opened,
        }
        for kind, close in closers.items():
            for left in run_lease.abandoned(self.home, kind):
                try:
                    close(left)
                except ServerAway:
                    raise
                except StageFailed as error:
                    # What is refused once is refused again, and is no reason to do without a new run.
                    _log.warning("%s", error)

    def close_opened(self, opening: str, but: str | None = None) -> None:
        """Give the runs of one opening whose answer was lost the status KILLED: nobody knows of them.

        `but` is the run whose answer came. One that is written stays: its opening may have ended well in the moment
        in which it was looked at. Raises: as `close_abandoned`.
        """
        with self.explained("look for a run whose answer was lost"):
            for run in self.client.search_runs(
                [opening.partition("-")[0]],
                filter_string=f"tags.`{OPENING_TAG}` = {filter_text(opening)} "
                "and attributes.status = 'RUNNING'",
            ):
                run_id = run.info.run_id
                if run_id != but and not run_lease.is_held(self.home, run_id):
                    self.client.set_terminated(run_id, status="KILLED")

    def find_run(self, experiment: str, tags: Mapping[str, str]) -> str | None:
        """The newest run of the experiment that bears all these tags, or None."""
        client = self.client
        with self.explained(f"search the experiment {experiment!r}"):
            found = client.get_experiment_by_name(experiment)
            if found is None:
                return None
            runs = client.search_runs(
                [found.experiment_id],
                filter_string=" and ".join(
                    f"tags.`{key}` = {filter_text(value)}" for key, value in tags.items()
                ),
                max_results=1,
                order_by=["attributes.start_time DESC"],
            )
        return str(runs[0].info.run_id) if runs else None

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Write parameters (nested mappings become dotted names). Those the run has already are kept.

        A run that is resumed sends its parameters again; MLflow would refuse a changed value, and a
        truncated one looks changed.
        """
        from mlflow.entities import Param

        values = {key: _shortened(text) for key, text in _flat(params)}
        with self.explained("write parameters"):
            present = self._run(run_id).data.params
            new = [Param(key, value) for key, value in values.items() if key not in present]
            for start in range(0, len(new), 100):
                self.client.log_batch(run_id, params=new[start : start + 100])
        for key in sorted(set(values) & set(present)):
            if values[key] != present[key]:
                _log.warning("Run %s keeps %s = %s", run_id, key, present[key])

    def log_metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Write the values of one step."""
        writer_points = [Point(name, float(value), 0, step) for name, value in values.items()]
        with self.explained("write metrics"):
            self._send(run_id, writer_points)

    def metric_writer(self, run_id: str) -> MetricWriter:
        """A writer for live metrics: an outage of the server never reaches the one who adds points."""
        return MetricWriter(lambda points: self._send(run_id, points))

    def log_dataset(
        self,
        run_id: str,
        *,
        name: str,
        digest: str,
        source: str,
        counts: Mapping[str, int],
        context: str,
    ) -> None:
        """Record which data the run read: name, digest, where it came from and the row counts."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:LONGEST_DIGEST],
            source_type="loraline",
            source=json.dumps({"source": source}),
            profile=json.dumps({**counts, "digest": digest}),
        )
        with self.explained("record the dataset"):
            tags = [InputTag("mlflow.data.context", context)]
            self.client.log_inputs(run_id, [DatasetInput(dataset=dataset, tags=tags)])

    def log_files(self, run_id: str, files: Sequence[tuple[Path, str | None]]) -> None:
        """Upload files or folders, each into the given folder of the run's artifacts."""
        with self.explained("store files of the run"):
            for path, folder in files:
                upload = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
                upload(run_id, str(path), folder)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Store a text as a file of the run's artifacts."""
        with self.explained(f"store {path}"):
            self.client.log_text(run_id, text, path)

    def log_table(self, run_id: str, table: Any, name: str) -> None:
        """Log a Parquet file or a DataFrame as the run's table artifact `<name>.json`, once.

        MLflow would append to a table of that name; a stage that is repeated must not double its rows.
        """
        import pandas as pd

        file = f"{name}.json"
        with self.explained(f"store the table {file}"):
            if any(entry.path == file for entry in self.client.list_artifacts(run_id)):
                return
            frame = pd.read_parquet(table) if isinstance(table, Path) else table
            with warnings.catch_warnings():
                # MLflow 3.17 selects columns by the dtype that pandas 4 will rename.
                warnings.simplefilter("ignore")
                self.client.log_table(run_id, frame, file)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of the run; an existing value is replaced."""
        from mlflow.entities import RunTag

        with self.explained("set tags"):
            self.client.log_batch(
                run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()]
            )

    def describe_run(self, run_id: str, markdown: str) -> None:
        """Set the text that the run's page shows."""
        self.set_tags(run_id, {"mlflow.note.content": markdown})

    def rename_run(self, run_id: str, name: str) -> None:
        """Give the run another name."""
        with self.explained(f"rename the run {run_id}"):
            self.client.update_run(run_id, name=name)

    def close_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Give the run its final status."""
        with self.explained(f"close the run {run_id} as {status}"):
            self.client.set_terminated(run_id, status=status)
        if lease := self._leases.pop(run_id, None):
            run_lease.give_back(self.home, run_id, lease)

    def close_abandoned(self, run_id: str) -> dict[str, str]:
        """Give a run that is left RUNNING the status KILLED; its tags, none where MLflow does not know it.

        Raises: ServerAway when MLflow does not answer; StageFailed when it refuses.
        """
        from mlflow.exceptions import MlflowException

        with self.explained(f"close the run {run_id}"):
            try:
                run = self._run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                # Deleted since, or of another tracking server.
                return {}
            # MLflow changes nothing of a run that somebody has deleted.
            if run.info.status == "RUNNING" and run.info.lifecycle_stage == "active":
                self.client.set_terminated(run_id, status="KILLED")
                _log.warning("MLflow run %s was left by a killed process; it is KILLED now", run_id)
            return dict(run.data.tags)

    def tags_of(self, run_id: str) -> dict[str, str]:
        """The run's tags."""
        with self.explained(f"read the run {run_id}"):
            return dict(self._run(run_id).data.tags)

    def run_url(self, run_id: str) -> str:
        """The page of the run."""
        with self.explained("find the run"):
            experiment = self._run(run_id).info.experiment_id
        return f"{self.ui_url}/#/experiments/{experiment}/runs/{run_id}"

    def version_url(self, name: str, version: str) -> str:
        """The page of the model version."""
        return f"{self.ui_url}/#/models/{quote(name, safe='')}/versions/{version}"

    def _run(self, run_id: str) -> "Run":
        return self.client.get_run(run_id)

    def _send(self, run_id: str, points: list[Point]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        for start in range(0, len(points), 1000):
            batch = [
                Metric(p.name, p.value, p.timestamp_ms or now, p.step)
                for p in points[start : start + 1000]
            ]
            self.client.log_batch(run_id, metrics=batch)

    def experiment_id(self, name: str) -> str:
        """The id of the experiment of this name, created when there is none.

        Raises: UserError when somebody deleted it.
        """
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None
            if self.owns_artifacts:
                # Explicit, so that runs written with and without the server before the database
                # keep their files in the same place, and never beside the user's code.
                folder = self.home.mlflow / "artifacts" / quote(name, safe="")
                location = folder.as_uri()
            try:
                return str(self.client.create_experiment(name, artifact_location=location))
            except MlflowException:
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        self._refuse_deleted(found)
        return str(found.experiment_id)

    def refuse_deleted(self, experiment: str) -> None:
        """Raises: UserError when somebody deleted the experiment of this name; StageFailed."""
        with self.explained(f"look for the experiment {experiment!r}"):
            found = self.client.get_experiment_by_name(experiment)
        if found is not None:
            self._refuse_deleted(found)

    def _refuse_deleted(self, experiment: "Experiment") -> None:
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"The MLflow experiment {experiment.name!r} is deleted. Restore it with `MLFLOW_TRACKING_URI="
                f"{shlex.quote(without_passwords(self.uri))} mlflow experiments restore --experiment-id "
                f"{experiment.experiment_id}`, or set registration.experiment in the recipe to another name."
            )


def filter_text(value: str) -> str:
    """The value as MLflow's search filters write a text; they have no escape for a quote in one."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def _sqlite_uri(home: Home) -> str:
    return f"sqlite:///{home.mlflow / 'mlflow.db'}"


def _stack_url(home: Home) -> str | None:
    """The MLflow server that `loraline ui` started, if it still lives and answers."""
    server = running(home, "mlflow")
    return server.url.rstrip("/") if server else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            # MLflow's names allow letters, digits and these signs.
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield re.sub(r"[^\w\-. :/]", "_", name)[:250], text


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def current_user() -> str:
    """The name of the user this process runs as."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a number that has no name.
        return f"uid {os.getuid()}"
