"""The recipe's section `tokenization`: how conversations become token ids and trained positions."""

from typing import Literal

from pydantic import Field

from tasks.settings import Settings


class TokenizationSettings(Settings):
    """How conversations become token ids. What is trained is verified for every row."""

    max_length: int = Field(default=1024, ge=8)
    """Longest row in tokens. A longer one falls under `long_rows`; an answer is never cut."""
    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """What carries the loss. `assistant`: every answer with the token that ends it. `last_assistant`:
    only the last answer of a conversation, for chats whose earlier answers are not to be copied or
    whose template drops their reasoning. `all`: prompts too, which teaches to write like the users;
    meant for texts without a real prompt. An answer with `weight: 0` is never asked for."""
    long_rows: Literal["error", "drop", "truncate_prompt", "split_turns"] = "error"
    """What becomes of a row longer than `max_length`. `error` refuses the dataset and lists the rows.
    `drop` leaves them out and counts them. `truncate_prompt` leaves out the oldest exchanges, then the
    beginning of the user's message, and keeps system prompt and answer whole: the model learns answers
    whose reasons it may not see. `split_turns` makes several rows of a long conversation, each answer
    trained once with as much history as fits: more tokens to train on in all. A text
    (`training.method: pretraining`) has no prompt: unless `drop` is written, what does not fit goes on in
    further rows, and nothing is lost."""
    packing: bool = False
    """Train several rows as one of up to `max_length` tokens; none sees another. Saves padding on a GPU,
    and puts several rows into each place of a batch: lower `per_device_train_batch_size` to keep as
    many optimizer steps. On a CPU it is slower than rows grouped by length, the default: attention
    costs the square of a pack's length (measured: a fifth slower at 256 tokens, half as fast at 512)."""
