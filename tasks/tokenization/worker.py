"""A process that tokenizes chunks: pickled questions on standard input, pickled answers on standard output.

It ends when its standard input does, which its parent's death brings about too.
"""

import gc
import os
import pickle
import struct
import sys
import traceback
from typing import Any, BinaryIO

FRAME = struct.Struct("<Q")
"""Before each pickle: its length in bytes."""


def send(stream: BinaryIO, value: Any) -> None:
    """Write one value. Raises: OSError when nobody reads."""
    data = pickle.dumps(value, protocol=5)
    stream.write(FRAME.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one value. Raises: EOFError when the other side is gone."""
    head = stream.read(FRAME.size)
    if len(head) < FRAME.size:
        raise EOFError
    (length,) = FRAME.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def main() -> None:
    """Receive a Setup, then answer `(side, lines)` with `("rows", batch, tally)` until the input ends.

    The other answers are `("disagree", words)` and `("error", traceback)`.
    """
    # One process a core: threads within would only wait for each other.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not mix with the answers.
    os.dup2(2, 1)
    from tasks.tokenization.chunks import ChunkTokenizer
    from tasks.tokenization.encoder import EncodersDisagree

    # Thousands of rows live at once and none is part of a cycle: looking for some takes a tenth of
    # the time.
    gc.set_threshold(100_000)
    questions = sys.stdin.buffer
    try:
        chunks = ChunkTokenizer.of(receive(questions))
        while True:
            side, lines = receive(questions)
            try:
                answer: tuple[Any, ...] = ("rows", *chunks.tokenize(side, lines))
            except EncodersDisagree as problem:
                answer = ("disagree", str(problem))
            except Exception:
                answer = ("error", traceback.format_exc())
            send(answers, answer)
    except (EOFError, BrokenPipeError):
        # The parent has all it wants, or is gone; nobody is left to read what is still unsent.
        os._exit(0)


if __name__ == "__main__":
    main()
