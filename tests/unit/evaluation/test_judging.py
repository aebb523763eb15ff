"""The judge: a model behind an OpenAI-compatible URL, here a small server on loopback."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import UserError
from tasks.evaluation import judging, score_worker
from tasks.evaluation.job import ScoreJob, ScoreResult
from tasks.evaluation.judging import judge_answers, score_in
from tasks.evaluation.settings import JudgeSettings

Reply = Callable[[str, int], tuple[int, Any]]
"""Question and how often it was asked before -> status, and the reply's text or whole body."""


class Server:
    """Answers chat completions by a function, and remembers what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][0]["content"]
                before = sum(b["messages"][0]["content"] == question for b in outer.bodies)
                outer.bodies.append(body)
                outer.headers.append({**self.headers, "path": self.path})
                status, said = reply(question, before)
                content = (
                    said
                    if isinstance(said, dict)
                    else {"choices": [{"message": {"content": said}}]}
                )
                data = json.dumps(content).encode()
                try:
                    self.send_response(status)
                    self.send_header("Location", "/elsewhere")
                    self.send_header("Retry-After", "0")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except BrokenPipeError:
                    pass

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Reply], Server]]:
    monkeypatch.setattr(judging, "FIRST_PAUSE_SECONDS", 0.01)
    running: list[Server] = []

    def start(reply: Reply) -> Server:
        running.append(Server(reply))
        return running[-1]

    yield start
    for server in running:
        server.close()


def judge(server: Server, **more: Any) -> JudgeSettings:
    values = {"url": server.url, "model": "strict", "timeout_seconds": 5, "retries": 2, **more}
    return JudgeSettings.model_validate(values)


COLUMNS: dict[str, list[Any]] = {
    "prompt": ["p0", "p1", "p2"],
    "reference": ["r0", "r1", "r2"],
    "base_answer": ["good", "bad", ""],
    "challenger_answer": ["good", "good", "bad"],
}


def by_answer(question: str, before: int) -> tuple[int, Any]:
    return 200, '{"score": 9}' if "<answer>\ngood" in question else '{"score": 2}'


def test_answers_are_scored_and_empty_ones_are_zero_without_being_sent(serve: Any) -> None:
    server = serve(by_answer)
    found = judge_answers(judge(server), ["base", "challenger"], COLUMNS, None)
    assert found.scores == {"base": [0.9, 0.2, 0.0], "challenger": [0.9, 0.9, 0.2]}
    assert found.missing == 0
    # Equal questions once: both models said "good" to p0.
    assert len(server.bodies) == 4
    assert {header["path"] for header in server.headers} == {"/v1/chat/completions"}
    assert server.bodies[0]["temperature"] == 0


def test_verdicts_are_remembered(serve: Any, tmp_path: Path) -> None:
    server = serve(by_answer)
    memory = tmp_path / "verdicts.jsonl"
    first = judge_answers(judge(server), ["base", "challenger"], COLUMNS, memory)
    # As a process leaves it that was killed while it wrote.
    memory.write_text(memory.read_text() + '["half a li', encoding="utf-8")
    again = judge_answers(judge(server), ["base", "challenger"], COLUMNS, memory)
    assert again == first
    assert len(server.bodies) == 4
    judge_answers(judge(server, model="other"), ["base", "challenger"], COLUMNS, memory)
    assert len(server.bodies) == 8
    judge_answers(judge(server, model="other"), ["base", "challenger"], COLUMNS, memory)
    assert len(server.bodies) == 8


def test_the_key_is_sent_and_stands_nowhere(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-9")
    server = serve(lambda question, before: (401, {"error": "no"}))
    memory = tmp_path / "verdicts.jsonl"
    with pytest.raises(UserError, match=r"status 401.*JUDGE_KEY") as caught:
        judge_answers(judge(server, key_variable="JUDGE_KEY"), ["base"], COLUMNS, memory)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-9"
    assert "secret" not in str(caught.value)
    assert "secret" not in caplog.text


def test_a_busy_judge_is_asked_again(serve: Any) -> None:
    server = serve(
        lambda q, before: by_answer(q, 0) if before == 2 else (429 if before else 503, {})
    )
    found = judge_answers(judge(server), ["challenger"], COLUMNS, None)
    assert found.scores["challenger"] == [0.9, 0.9, 0.2]
    assert len(server.bodies) == 9


def test_a_slow_judge_counts_as_missing(serve: Any) -> None:
    def slow(question: str, before: int) -> tuple[int, Any]:
        if "p1" in question:
            time.sleep(1.0)
        return by_answer(question, before)

    server = serve(slow)
    settings = judge(server, timeout_seconds=0.3, retries=1, max_missing_share=0.5)
    found = judge_answers(settings, ["challenger"], COLUMNS, None)
    assert found.scores["challenger"] == [0.9, None, 0.2]


def test_a_bad_verdict_is_missing_for_every_model_and_counted(serve: Any) -> None:
    server = serve(
        lambda q, before: (
            (200, "I would say eight.") if "<answer>\nbad" in q else by_answer(q, before)
        )
    )
    settings = judge(server, max_missing_share=1.0)
    found = judge_answers(settings, ["base", "challenger"], COLUMNS, None)
    # Row 1 is bad of the base alone, row 2 of the challenger alone.
    assert found.scores == {"base": [0.9, None, None], "challenger": [0.9, None, None]}
    assert found.missing == 2
    assert "2 of 3 rows" in found.notes[0]


def test_too_many_missing_verdicts_fail_in_words(serve: Any) -> None:
    server = serve(lambda q, before: (200, {"choices": []}))
    with pytest.raises(UserError, match="no usable verdict on 3 of 3 rows"):
        judge_answers(judge(server, retries=0), ["challenger"], COLUMNS, None)


def test_a_judge_that_is_not_there_fails_in_words(serve: Any) -> None:
    server = serve(by_answer)
    settings = judge(server, retries=1)
    server.close()
    server.close = lambda: None
    with pytest.raises(UserError, match=r"cannot be reached .*Start it"):
        judge_answers(settings, ["challenger"], COLUMNS, None)


def test_redirects_are_not_followed(serve: Any) -> None:
    server = serve(lambda q, before: (302, {}))
    with pytest.raises(UserError, match="status 302"):
        judge_answers(judge(server), ["challenger"], COLUMNS, None)
    assert {header["path"] for header in server.headers} == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 7}', 0.7),
        (' {"score": 10} \n', 1.0),
        ("0", 0.0),
        ('```json\n{"score": 3}\n```', 0.3),
        ('{"score": 11}', None),
        ('{"score": -1}', None),
        ('{"score": 7, "why": "because"}', None),
        ("7 out of 10", None),
        ("", None),
    ],
)
def test_what_counts_as_a_verdict(reply: str, score: float | None) -> None:
    assert score_in(reply) == score


def test_the_judges_scores_are_a_metric_with_its_missing_rows_counted(
    serve: Any, tmp_path: Path
) -> None:
    server = serve(lambda q, before: (200, "no idea") if "r2" in q else by_answer(q, before))
    rows = [
        {
            "id": f"row-{n}",
            "prompt": f"p{n}",
            "reference": f"r{n}",
            "label": None,
            "prompt_tokens": 3,
            "trained_tokens": 2,
            **{
                f"{model}_{name}": value
                for model, answer in (("base", "bad"), ("challenger", "good"))
                for name, value in (
                    ("answer", answer),
                    ("stopped", True),
                    ("tokens", 1),
                    ("nll", 1.0),
                    ("correct", 1),
                )
            },
        }
        for n in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "predictions.parquet")
    job = ScoreJob(
        predictions=tmp_path / "predictions.parquet",
        models=["base", "challenger"],
        bootstrap_samples=100,
        confidences=[],
        scores=tmp_path / "scores.parquet",
        result=tmp_path / "scores.json",
        judge=judge(server, max_missing_share=0.5),
    )
    score_worker.score(job)
    found = ScoreResult.model_validate_json(job.result.read_text(encoding="utf-8"))
    assert found.metrics["base"]["judge"] == pytest.approx(0.2)
    assert found.metrics["challenger"]["judge"] == pytest.approx(0.9)
    assert found.differences["base"]["judge"].mean == pytest.approx(0.7)
    assert found.missing_verdicts == 1
    assert any("no usable verdict on 1 of 4 rows" in note for note in found.notes)
    assert pq.read_table(job.scores)["challenger_judge"].to_pylist() == [0.9, 0.9, None, 0.9]
