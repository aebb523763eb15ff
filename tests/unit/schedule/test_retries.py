"""What is retried: an outage for some minutes, lack of memory once in smaller batches, a mistake never."""

import importlib
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import launch
from tasks.errors import DataError, Interrupted, OutOfMemory, StageFailed
from tasks.outage import bridged, is_outage
from tasks.training import work
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def refused_by(library: str) -> BaseException:
    """What the library raises where nothing listens."""
    get = importlib.import_module(library).get
    with pytest.raises(Exception) as caught:  # noqa: PT011
        get("http://127.0.0.1:9/", timeout=5)
    return caught.value


@pytest.mark.parametrize("library", ["requests", "httpx"])
def test_a_server_that_does_not_answer_is_an_outage_in_whatever_librarys_words(
    library: str,
) -> None:
    assert is_outage(raised(StageFailed("MLflow does not answer"), refused_by(library)))


def test_mlflows_own_client_tells_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.home import Home
    from tasks.tracking import Tracker

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(Home(tmp_path), uri="http://127.0.0.1:9")
    with pytest.raises(StageFailed) as caught, tracker.explained("list"):
        tracker.client.search_experiments()
    assert is_outage(caught.value)


def test_a_run_that_finds_its_server_away_when_it_begins_again_waits_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.home import Home
    from tasks.tracking import refuse_unreachable

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(StageFailed, match="does not answer") as caught:
        refuse_unreachable(Home(tmp_path))
    assert is_outage(caught.value)


def test_an_outage_is_one_too_where_the_address_holds_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.home import Home
    from tasks.tracking import Tracker

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(Home(tmp_path), uri="http://me:geheim@127.0.0.1:9")
    with pytest.raises(StageFailed) as caught, tracker.explained("list"):
        tracker.client.search_experiments()
    assert is_outage(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        DataError("row 7 is wrong"),
        StageFailed("the gate has no numbers"),
        FileNotFoundError("a.jsonl"),
        PermissionError("a.jsonl"),
        urllib.error.HTTPError("http://a", 404, "no such page", {}, None),  # type: ignore[arg-type]
        raised(Interrupted("Ctrl-C"), ConnectionResetError()),
        raised(DataError("no such host"), OSError("[Errno -2] Name or service not known")),
    ],
)
def test_a_mistake_is_no_outage(error: BaseException) -> None:
    assert not is_outage(error)


def test_what_an_error_was_raised_amid_counts_unless_it_is_said_not_to_be_the_cause() -> None:
    def told(*, hidden: bool) -> BaseException:
        try:
            try:
                raise ConnectionRefusedError("away")
            except ConnectionRefusedError:
                if hidden:
                    raise DataError("row 7 is wrong") from None
                raise StageFailed("could not ask")  # noqa: B904
        except (DataError, StageFailed) as caught:
            return caught

    assert is_outage(told(hidden=False))
    assert not is_outage(told(hidden=True))


class OperationalError(Exception):
    """As each driver of MySQL calls it."""

    __module__ = "pymysql.err"


@pytest.mark.parametrize(
    ("number", "is_away"), [(2003, True), (1040, True), (1045, False), (1049, False), (2005, False)]
)
def test_a_database_that_is_away_is_told_by_its_drivers_number(number: int, is_away: bool) -> None:
    assert is_outage(raised(StageFailed("x"), OperationalError(number, "words"))) is is_away


@pytest.mark.parametrize(
    ("state", "is_away"),
    [("08006", True), ("53300", True), ("57P03", True), ("57014", False), ("42P01", False)],
)
def test_a_database_that_is_away_is_told_by_its_sqlstate(state: str, is_away: bool) -> None:
    from psycopg.errors import lookup

    assert is_outage(lookup(state)("words")) is is_away


def test_an_outage_is_bridged_and_the_pauses_grow() -> None:
    pauses: list[float] = []
    answers: list[Callable[[], str]] = [
        lambda: (_ for _ in ()).throw(ConnectionRefusedError("away")),
        lambda: (_ for _ in ()).throw(TimeoutError("away")),
        lambda: "done",
    ]
    assert bridged(lambda: answers.pop(0)(), doing="ask", sleep=pauses.append) == "done"
    assert pauses == [15, 60]


def test_an_outage_that_does_not_end_is_told_after_nine_minutes() -> None:
    pauses: list[float] = []

    def away() -> None:
        raise ConnectionRefusedError("still away")

    with pytest.raises(ConnectionRefusedError):
        bridged(away, doing="ask", sleep=pauses.append)
    assert sum(pauses) == 555


def test_a_mistake_is_raised_at_once() -> None:
    def wrong() -> None:
        raise DataError("row 7")

    with pytest.raises(DataError):
        bridged(wrong, doing="ask", sleep=lambda _: pytest.fail("it waited"))


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    values: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
    }
    return TrainingJob.model_construct(working=tmp_path, training_config=values)


def out_of_memory_above(batch: int, tried: list[dict[str, Any]]) -> Callable[..., Any]:
    def run_worker(job: TrainingJob, *_: object) -> TrainingResult:
        tried.append(job.training_config)
        if job.training_config["per_device_train_batch_size"] > batch:
            raise OutOfMemory("Memory ran out at step 3: CUDA out of memory\nmore")
        return TrainingResult.model_construct()

    return run_worker


def test_out_of_memory_is_tried_once_more_with_half_the_batch_and_as_many_rows_a_step(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(work, "_run_worker", out_of_memory_above(4, tried))
    work._trained(job, TrainingSettings(smaller_batches=True), tmp_path / "log", said.append)
    rows = [v["per_device_train_batch_size"] * v["gradient_accumulation_steps"] for v in tried]
    assert [v["per_device_train_batch_size"] for v in tried] == [8, 4]
    assert rows == [16, 16]
    assert "Once more with per_device_train_batch_size 4" in said[0]["message"]


def test_it_is_tried_once_only_and_only_where_the_recipe_allows_it(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[dict[str, Any]] = []
    monkeypatch.setattr(work, "_run_worker", out_of_memory_above(1, tried))
    with pytest.raises(OutOfMemory):
        work._trained(job, TrainingSettings(smaller_batches=True), tmp_path / "log", print)
    assert len(tried) == 2
    tried.clear()
    with pytest.raises(OutOfMemory):
        work._trained(job, TrainingSettings(), tmp_path / "log", print)
    assert len(tried) == 1


def test_smaller_batches_are_no_other_adapter() -> None:
    assert TrainingSettings(smaller_batches=True).content() == TrainingSettings().content()


def test_a_worker_that_says_so_ran_out_of_memory(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tasks.errors import WorkerFailed

    def run(*_: object, on_event: Callable[[dict[str, Any]], None], **__: object) -> None:
        on_event({"event": "failed", "message": "Memory ran out", "kind": "OutOfMemory"})
        raise WorkerFailed("exit code 1")

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(launch, "write_job", lambda folder, _: folder / "job.json")
    with pytest.raises(OutOfMemory, match="Full log"):
        work._run_worker(job, TrainingSettings(), tmp_path / "log", None)
