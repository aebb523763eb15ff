"""The metric writer: an outage never reaches training, and every point arrives once."""

import threading
import time

import pytest

from tasks.errors import StageFailed
from tasks.metric_writer import MetricWriter, Point


class Server:
    """Keeps what arrives, unless it is down."""

    def __init__(self) -> None:
        self.down = False
        self.calls = 0
        self.points: set[Point] = set()

    def send(self, points: list[Point]) -> None:
        self.calls += 1
        if self.down:
            raise ConnectionError("refused")
        self.points.update(points)


def writer(server: Server) -> MetricWriter:
    return MetricWriter(server.send, seconds_between_batches=0.02, final_attempts=3)


def steps(server: Server) -> list[int]:
    return sorted(point.step for point in server.points)


def test_points_are_sent_in_batches_while_training_goes_on() -> None:
    server = Server()
    live = writer(server)
    for step in range(200):
        live.add({"loss": 1.0 / (step + 1)}, step)
    deadline = time.monotonic() + 60
    while len(server.points) < 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert steps(server) == list(range(200))
    assert server.calls < 100
    live.close()


def test_an_outage_is_not_felt_and_its_points_arrive_afterwards() -> None:
    server = Server()
    live = writer(server)
    live.add({"loss": 3.0}, 1)
    server.down = True
    started = time.monotonic()
    for step in range(2, 50):
        live.add({"loss": 2.0, "lr": 0.1}, step)
    assert time.monotonic() - started < 1
    time.sleep(0.1)
    server.down = False
    live.add({"loss": 1.0}, 50)
    live.close()
    assert len(server.points) == 1 + 48 * 2 + 1
    assert set(steps(server)) == set(range(1, 51))


def test_a_server_that_is_gone_at_the_end_is_a_clear_error() -> None:
    server = Server()
    server.down = True
    live = writer(server)
    live.add({"loss": 1.0, "lr": 0.1}, 1)
    with pytest.raises(StageFailed, match=r"2 metric values could not be sent .* refused"):
        live.close()


def test_a_slow_server_does_not_slow_training() -> None:
    answers = threading.Event()

    class Slow(Server):
        def send(self, points: list[Point]) -> None:
            assert answers.wait(60)
            super().send(points)

    server = Slow()
    live = writer(server)
    for step in range(100):
        live.add({"loss": 1.0}, step)
    assert not server.points
    answers.set()
    live.close()
    assert steps(server) == list(range(100))
