"""The process that fetches a dataset of the Hub with Hugging Face's own library, as one Parquet file."""

from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetNotFoundError, DefunctDatasetError

from tasks import worker
from tasks.dataset.reading.hub_job import HubJob, HubResult
from tasks.errors import DataError


def fetch(job: HubJob) -> None:
    """Write the split's rows, then the result.

    Raises: DataError when there is no such dataset, configuration or split, or it needs code to run.
    """
    try:
        dataset = load_dataset(job.id, job.config, split=job.split, revision=job.commit)
    except (DatasetNotFoundError, DefunctDatasetError) as error:
        raise DataError(
            f"The Hub shows no dataset {job.id} at commit {job.commit} ({error}). Check the spelling; "
            "for a private or gated one accept its terms and log in with `hf auth login` (or set "
            "HF_TOKEN)."
        ) from error
    except EmptyDatasetError as error:
        raise DataError(
            f"The dataset {job.id} holds no data file that is read ({error}). Choose another revision "
            "(often `refs/convert/parquet`), or fetch its files and read them as `type: files`."
        ) from error
    except ValueError as error:
        raise DataError(_unknown_part(job, error)) from error
    except ConnectionError as error:
        raise DataError(
            f"The rows of {job.id} at commit {job.commit} are not on this machine yet, and the Hub "
            f"cannot be asked for them ({error}). Check the network and HF_HUB_OFFLINE, or copy "
            "cache/sources/hub of LORALINE_HOME from a machine that has them."
        ) from error
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise DataError(
            f"The dataset {job.id} is made by a script, which would run its author's code here "
            f"({error}). Use a revision with data files (often `refs/convert/parquet`)."
        ) from error
    dataset.to_parquet(job.rows)
    worker.write_result(job.result, HubResult(rows=len(dataset), columns=dataset.column_names))


def _unknown_part(job: HubJob, error: ValueError) -> str:
    """What there is, where a configuration or a split is not."""
    message = f"Cannot read {job.id}, config {job.config!r}, split {job.split!r}: {error}"
    try:
        configs = get_dataset_config_names(job.id, revision=job.commit)
        message += f" Its configs are {', '.join(configs)}"
        if job.config is not None or len(configs) == 1:
            splits = get_dataset_split_names(job.id, job.config, revision=job.commit)
            message += f"; its splits are {', '.join(splits)}"
    except (ValueError, OSError):
        return message
    return f"{message}. Correct dataset.sources[].config or split."


if __name__ == "__main__":
    worker.main(HubJob, fetch)
