"""A process that tokenizes chunks: pickled questions on standard input, pickled answers on standard output.

Rows go through files, which their reader maps into its memory. It ends when its standard input does,
which its parent's death brings about too.
"""

import os
import pickle
import struct
import sys
import traceback
from itertools import count
from pathlib import Path
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


def main(scratch: str) -> None:
    """Answer each Chunk by the Setup that came last, with `("rows", path, tally)`, until the input ends.

    The path begins with `scratch`; whoever reads the file deletes it. The other answers are
    `("disagree", words)` and `("error", traceback)`.
    """
    # One process a core: threads within would only wait for each other.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for name in ("RAYON", "OMP", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not mix with the answers.
    os.dup2(2, 1)
    import pyarrow as pa

    from tasks.tokenization.chunks import ChunkTokenizer, Setup
    from tasks.tokenization.encoder import EncodersDisagree

    questions = sys.stdin.buffer
    numbers = count()
    try:
        while True:
            question = receive(questions)
            if isinstance(question, Setup):
                chunks = ChunkTokenizer.of(question)
                continue
            try:
                rows, tally = chunks.tokenize(question)
                path = Path(f"{scratch}.{next(numbers)}.arrow")
                with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as to:
                    to.write_batch(rows)
                answer: tuple[Any, ...] = ("rows", path, tally)
            except EncodersDisagree as problem:
                answer = ("disagree", str(problem))
            except Exception:
                answer = ("error", traceback.format_exc())
            send(answers, answer)
    except (EOFError, BrokenPipeError):
        # The parent has all it wants, or is gone; nobody is left to read what is still unsent.
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
