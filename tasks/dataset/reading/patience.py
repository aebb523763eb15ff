"""Read what may fall silent for ever: in a thread of its own, with an end to each wait."""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

CLOSING_SECONDS = 5.0
"""How long the thread may take to close what it read."""
T = TypeVar("T")


class Silence(Exception):
    """The next item did not come in time."""


def heard(
    items: Generator[T, None, None], seconds: Iterable[float], cancel: Callable[[], None]
) -> Generator[T, None, None]:
    """The items, each asked for when it is wanted; the first may take the first of `seconds`, and so on.

    A driver waits inside C, where nothing interrupts it: all that `items` does, its closing too, is done
    in the thread. Where it does not come back, `cancel` is called to end the wait, from one more thread
    since that may wait as well; what does not end by that is left behind, and keeps no process from ending.

    Raises: Silence; whatever `items` raises.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    given: SimpleQueue[_Given[T]] = SimpleQueue()

    def read() -> None:
        try:
            while wanted.get():
                given.put(_next(items))
        finally:
            # Nobody misses the connection that a driver could not close.
            with contextlib.suppress(Exception):
                items.close()

    reader = threading.Thread(target=read, name="loraline-reader", daemon=True)
    reader.start()
    is_waiting = False
    try:
        for limit in seconds:
            is_waiting = True
            wanted.put(True)
            try:
                answer = given.get(timeout=limit)
            except Empty:
                raise Silence(f"nothing for {limit:g} s") from None
            is_waiting = False
            if answer.error is not None:
                raise answer.error
            if not answer.items:
                return
            yield answer.items[0]
    finally:
        wanted.put(False)
        if is_waiting:
            threading.Thread(target=cancel, name="loraline-cancel", daemon=True).start()
        reader.join(CLOSING_SECONDS)


@dataclass(frozen=True)
class _Given(Generic[T]):
    """One item, an error, or neither: the end."""

    items: tuple[T, ...] = ()
    error: BaseException | None = None


def _next(items: Iterator[T]) -> _Given[T]:
    try:
        return _Given((next(items),))
    except StopIteration:
        return _Given()
    except BaseException as error:
        return _Given(error=error)
