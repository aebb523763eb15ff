"""Answer chat requests with a version, in a process of its own."""

from typing import Any

from tasks.errors import UserError
from tasks.registration.job import Answer, PredictJob, Request
from tasks.registration.loading import load_version, telling_failures
from tasks.worker import emit, main

REQUESTS_AT_ONCE = 64
"""Progress is reported this often; answers are generated in batches of `batch_size` inside."""
SHOWN_MISTAKES = 20


def predict(job: PredictJob) -> None:
    """Load the version through mlflow.pyfunc, as a server would, and write one answer a line."""
    lines = job.requests.read_text(encoding="utf-8").splitlines()
    asked = [Request.model_validate_json(line) for line in lines]
    config: dict[str, Any] = {"batch_size": job.batch_size}
    if job.base is not None:
        config["base"] = str(job.base)
    with telling_failures():
        loaded = load_version(job.model_uri, config, files=job.model)
    model: Any = loaded.unwrap_python_model()
    _refuse_unanswerable(model, asked)
    temporary = job.answers.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for start in range(0, len(asked), REQUESTS_AT_ONCE):
            part = asked[start : start + REQUESTS_AT_ONCE]
            for response in model.answer([item.request for item in part]):
                choice = response["choices"][0]
                answer = Answer(
                    answer=choice["message"]["content"],
                    finish_reason=choice["finish_reason"],
                    usage=response["usage"],
                )
                file.write(answer.model_dump_json() + "\n")
            done = start + len(part)
            emit("generated", stage="predict", model=job.model_uri, done=done, total=len(asked))
    temporary.rename(job.answers)


def _refuse_unanswerable(model: Any, asked: list[Request]) -> None:
    """Name every request that the model cannot take before the first is answered."""
    mistakes = []
    for item in asked:
        try:
            model.prepare(item.request)
        except ValueError as error:
            mistakes.append(f"{item.place}: {error}")
    if mistakes:
        more = len(mistakes) - SHOWN_MISTAKES
        raise UserError("\n".join(mistakes[:SHOWN_MISTAKES] + [f"and {more} more"] * (more > 0)))


if __name__ == "__main__":
    main(PredictJob, predict)
