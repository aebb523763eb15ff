"""The process that converts: it opens what others made, and goes away with it."""

import transformers

from tasks.conversion import to_loralib, to_peft
from tasks.conversion.base_layers import BaseLayers, load_base_layers
from tasks.conversion.job import ConversionJob
from tasks.conversion.plain_base import load_plain_base
from tasks.worker import main, write_result


def convert(job: ConversionJob) -> None:
    """Write the converted files to the job's draft, then the result."""
    transformers.utils.logging.disable_progress_bar()
    base: BaseLayers
    if job.base.is_file():
        base = load_plain_base(job.base, shown=job.base_name)
    else:
        architecture = job.sidecar.architecture
        base = load_base_layers(job.base, shown=job.base_name, architecture=architecture)
    direction = to_peft if job.to == "peft" else to_loralib
    write_result(job.result, direction.convert(job, base))


if __name__ == "__main__":
    main(ConversionJob, convert)
