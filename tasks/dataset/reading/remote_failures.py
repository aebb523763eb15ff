"""Why a file behind a URL could not be had, in words: the cause lies deep in the file system's errors."""

import ssl
from collections.abc import Iterator
from socket import gaierror
from urllib.parse import urlsplit

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""URL scheme -> loraline's extra that reads it."""
PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
"""Others' packages, by URL scheme."""
_CREDENTIALS = (
    "Credentials come from the environment (for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a "
    "profile; storage_options {anon: true} reads a public bucket)."
)


def refusal(shown: str, error: Exception, silent_seconds: float) -> str:
    """The message for `error`, which a file system raised for the URL `shown` (without its query).

    File systems wrap what happened: fsspec's for the web says "no such file" of a server that is down.
    """
    return f"Cannot read dataset.sources[].path {shown}: {_cause(shown, error, silent_seconds)}"


def _cause(shown: str, error: Exception, silent_seconds: float) -> str:
    scheme, server = urlsplit(shown).scheme, urlsplit(shown).netloc
    causes = list(_causes(error))
    if any(isinstance(cause, ImportError) for cause in causes):
        return _not_installed(scheme, error)
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return (
            f"nothing here reads {scheme}://. Correct the URL (s3://, gs://, https:// and local paths "
            "are read), or copy the files here."
        )
    for cause in causes:
        if isinstance(cause, gaierror):
            return f"the name of the server {server} is not known ({cause.strerror}). Correct it, or check the network."
        if isinstance(cause, ssl.SSLError):
            return f"the certificate of {server} is not accepted ({cause}). Check the server and this machine's clock and certificates."
        if isinstance(cause, ConnectionRefusedError):
            return (
                f"nothing answers there (connection refused: {_plain(cause)}). Check that the server "
                "runs and that host and port are right, in the URL or in storage_options."
            )
        if isinstance(cause, TimeoutError) or "Timeout" in cause.__class__.__name__:
            return (
                f"the server did not answer within {silent_seconds:g} seconds, or fell silent on the way. "
                "Check the network and the server, and run again."
            )
        status = getattr(cause, "status", None)
        if isinstance(status, int) and status != 404:
            way = (
                "Give access to it; a web server's credentials cannot be in the recipe, so copy the "
                "file here where it needs some."
                if status in (401, 403, 407)
                else "Try again later."
            )
            return f"the server answered with status {status}. {way}"
    if any(isinstance(cause, ConnectionError) for cause in causes):
        return f"the connection failed ({_plain(causes[-1])}). Check the network, and run again."
    if isinstance(error, FileNotFoundError):
        return "there is no such file, folder or bucket. Correct it, or its storage_options."
    return f"{error.__class__.__name__}: {_plain(error)}. {_CREDENTIALS}"


def _not_installed(scheme: str, error: Exception) -> str:
    if scheme in EXTRAS:
        way = f'Run: pip install "loraline[{EXTRAS[scheme]}]"'
    elif scheme in PACKAGES:
        way = f"Run: pip install {PACKAGES[scheme]}"
    else:
        way = "Install what it names"
    return (
        f"what reads {scheme}:// is not installed ({_plain(error)}). {way}, or copy the files here."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, the outermost first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _plain(error: BaseException) -> str:
    return " ".join(str(error).split()) or error.__class__.__name__
