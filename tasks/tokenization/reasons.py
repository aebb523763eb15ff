"""Why rows are left out, and what is done to those that are kept, as the card counts them."""

TOO_LONG = "longer than tokenization.max_length"
UNFIT = "cannot be trained on"
BAD_ANSWER = "answers that were judged bad"

NEUTRALISED = "control token's text kept as ordinary text"
STRIPPED = "white space before the answer left out"
TRUNCATED = "prompt cut to tokenization.max_length"
SPLIT = "split into several rows"
LOST = "answers that fit in no row"
UNSEEN_TOOLS = "tools that the chat template does not show"
