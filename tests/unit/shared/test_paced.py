"""However much is said, few bundles are passed on, nobody who speaks waits, and the last words arrive."""

import threading
import time
from collections.abc import Sequence

from tasks.paced import Paced


def test_a_flood_is_passed_on_in_few_bundles_and_its_end_is_not_lost() -> None:
    bundles: list[tuple[list[int], int]] = []
    paced = Paced[int](
        lambda things, left_out: bundles.append((list(things), left_out)), seconds=0.3, most=10
    )
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < 1.0:
        paced.add(number)
        number += 1
        time.sleep(0.0005)
    paced.close()
    took = time.monotonic() - began
    assert 3 <= len(bundles) <= took / 0.3 + 2
    assert all(len(things) <= 10 for things, _ in bundles)
    assert bundles[-1][0][-1] == number - 1
    # Nothing vanishes without being counted.
    assert sum(len(things) + left_out for things, left_out in bundles) == number


def test_the_first_word_is_passed_on_at_once() -> None:
    heard = threading.Event()
    paced = Paced[str](lambda *_: heard.set(), seconds=3600, most=1)
    paced.add("now")
    assert heard.wait(60)
    paced.close()


def test_last_words_before_a_silence_do_not_wait_for_the_next_ones() -> None:
    bundles: list[list[str]] = []
    paced = Paced[str](lambda things, _: bundles.append(list(things)), seconds=0.2, most=9)
    for number, word in enumerate(("one", "two")):
        paced.add(word)
        deadline = time.monotonic() + 60
        while len(bundles) <= number and time.monotonic() < deadline:
            time.sleep(0.01)
    assert bundles == [["one"], ["two"]]
    paced.close()


def test_who_speaks_never_waits_for_a_receiver_that_hangs() -> None:
    hangs = threading.Event()

    def write(_: Sequence[int], __: int) -> None:
        hangs.wait(20)

    paced = Paced[int](write, seconds=0.0, most=5)
    began = time.monotonic()
    for number in range(10_000):
        paced.add(number)
    paced.close(patience_seconds=0.1)
    assert time.monotonic() - began < 5
    hangs.set()


def test_a_receiver_that_fails_gets_the_next_bundle_all_the_same() -> None:
    bundles: list[list[str]] = []

    def write(things: Sequence[str], _: int) -> None:
        bundles.append(list(things))
        if len(bundles) == 1:
            raise OSError("away")

    paced = Paced[str](write, seconds=0.01, most=5)
    paced.add("one")
    time.sleep(0.1)
    paced.add("two")
    paced.close()
    assert [thing for bundle in bundles for thing in bundle] == ["one", "two"]


def test_closing_what_never_spoke_is_no_mistake() -> None:
    Paced[int](lambda *_: None, seconds=1, most=1).close()
