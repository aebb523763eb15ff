"""The judge: a model behind an OpenAI-compatible URL, here a small server on loopback."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from tasks.evaluation.verdicts import Verdicts

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


def test_what_was_paid_for_is_remembered_when_the_judge_refuses_midway(
    serve: Any, tmp_path: Path
) -> None:
    rows = 12
    columns = {
        "prompt": [f"p{n}" for n in range(rows)],
        "reference": ["r"] * rows,
        "challenger_answer": ["good"] * rows,
    }
    paid: list[str] = []
    is_empty = threading.Event()

    def budget(question: str, before: int) -> tuple[int, Any]:
        if len(paid) == 8 and not is_empty.is_set():
            return 402, {"error": {"message": "Insufficient\nfunds " + "x" * 500}}
        paid.append(question)
        return by_answer(question, before)

    server = serve(budget)
    memory = tmp_path / "verdicts.jsonl"
    settings = judge(server, parallel=1)
    with pytest.raises(UserError, match=r"status 402 and says: .*Insufficient") as caught:
        judge_answers(settings, ["challenger"], columns, memory)
    assert "x" * 100 in str(caught.value)
    assert "x" * 201 not in str(caught.value)
    assert len(memory.read_text().splitlines()) == 8
    # Nobody was asked after the first refusal.
    assert len(server.bodies) == 9
    is_empty.set()
    found = judge_answers(settings, ["challenger"], columns, memory)
    assert found.scores["challenger"] == [0.9] * rows
    assert len(paid) == len(set(paid)) == rows


def test_a_verdict_is_on_disk_before_the_next_question(serve: Any, tmp_path: Path) -> None:
    memory = tmp_path / "verdicts.jsonl"
    lines: list[int] = []

    def look(question: str, before: int) -> tuple[int, Any]:
        lines.append(len(memory.read_text().splitlines()))
        return by_answer(question, before)

    judge_answers(judge(serve(look), parallel=1), ["challenger"], COLUMNS, memory)
    assert lines == [0, 1, 2]


def test_threads_add_whole_lines_behind_a_torn_one(tmp_path: Path) -> None:
    memory = tmp_path / "verdicts.jsonl"
    memory.write_text('["half a li')
    with Verdicts(memory) as verdicts, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: verdicts.add(f"key-{n}", n / 500), range(500)))
    with Verdicts(memory) as again:
        assert [again.get(f"key-{n}") for n in range(500)] == [n / 500 for n in range(500)]
    assert len(memory.read_text().splitlines()) == 501


def test_a_key_that_the_server_repeats_is_not_shown(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-9")
    server = serve(lambda q, before: (401, {"error": "Incorrect key: sk-secret-9"}))
    with pytest.raises(UserError, match=r"Incorrect key: \*\*\*") as caught:
        judge_answers(judge(server, key_variable="JUDGE_KEY"), ["challenger"], COLUMNS, None)
    assert "secret" not in str(caught.value)


def test_the_recipe_says_what_is_sent_beside_model_and_messages(serve: Any, tmp_path: Path) -> None:
    def thinks(question: str, before: int) -> tuple[int, Any]:
        sent = server.bodies[-1]
        if "max_tokens" in sent or "temperature" in sent:
            return 400, {"error": "Unsupported parameter: 'max_tokens'"}
        return by_answer(question, before)

    server = serve(thinks)
    memory = tmp_path / "verdicts.jsonl"
    with pytest.raises(
        UserError, match=r"Unsupported parameter.*whether the model takes"
    ) as caught:
        judge_answers(judge(server), ["challenger"], COLUMNS, memory)
    assert '{"temperature": 0, "max_tokens": 64}' in str(caught.value)
    settings = judge(server, parameters={"max_completion_tokens": 2000}, parallel=1)
    found = judge_answers(settings, ["challenger"], COLUMNS, memory)
    assert found.scores["challenger"] == [0.9, 0.9, 0.2]
    assert server.bodies[-1]["max_completion_tokens"] == 2000
    asked = len(server.bodies)
    # Other parameters are other verdicts.
    judge_answers(settings, ["challenger"], COLUMNS, memory)
    assert len(server.bodies) == asked
    more = judge(server, parameters={"max_completion_tokens": 100})
    judge_answers(more, ["challenger"], COLUMNS, memory)
    assert len(server.bodies) == asked + 3
    with pytest.raises(ValueError, match="messages, model cannot be set here"):
        judge(server, parameters={"model": "other", "messages": []})
    with pytest.raises(ValueError, match="must be finite"):
        judge(server, parameters={"temperature": float("nan")})


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
