"""What of a shell's environment the systemd unit is given, and what its file must have instead: secrets."""

from collections.abc import Mapping
from pathlib import Path

from flows.connection import ORIGINS as PREFECT_ORIGINS
from flows.scheduled_recipes import recipe_files
from flows.stack.exposure import MLFLOW_PASSWORDS, PREFECT_PASSWORD
from flows.stack.own_names import HOSTS, ORIGINS
from flows.stack.parts import connection_settings
from tasks.addresses import without_passwords
from tasks.errors import LoralineError
from tasks.recipe_file import read_document
from tasks.recipe_secrets import secret_variables

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
KEPT = (
    "PATH",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "TZ",
    "XDG_CACHE_HOME",
    "LORALINE_BASE",
    "LORALINE_GPU_LOCKS",
    "LORALINE_LOCK_DATABASE",
    "LORALINE_NOTIFY",
    "LORALINE_STORE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_XET",
    "HF_ENDPOINT",
    "HF_TOKEN_PATH",
    "HF_XET_CACHE",
    "AWS_CONFIG_FILE",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_SHARED_CREDENTIALS_FILE",
    *_PROXIES,
    *(name.lower() for name in _PROXIES),
    "AWS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "LLAMA_CPP_DIR",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_CACHE_DIR",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    HOSTS,
    ORIGINS,
    *PREFECT_ORIGINS,
)
"""What a part reads and everybody may: a unit's text is no secret. Not a value that holds a password."""
SECRETS = (
    "LORALINE_WEBHOOKS",
    "LORALINE_WEBHOOK_SECRET",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "OPENAI_API_KEY",
    "PGPASSWORD",
    PREFECT_PASSWORD,
    "PREFECT_SERVER_ENCRYPTION_KEY",
    *MLFLOW_PASSWORDS,
)
"""What a part reads and nobody else may. Webhooks are among them: who knows such an address may post there."""


def kept(environ: Mapping[str, str]) -> dict[str, str]:
    """What goes into the unit."""
    return {
        name: environ[name]
        for name in _wanted(environ)
        if environ.get(name) and not _is_secret(environ, name)
    }


def not_in_file(environ: Mapping[str, str], file: Mapping[str, str], project: Path) -> list[str]:
    """The names of secrets that are set here and that the unit would not have, in the order of the page."""
    names = dict.fromkeys((*SECRETS, *_named_by_recipes(project, environ)))
    names.update(dict.fromkeys(name for name in _wanted(environ) if _is_secret(environ, name)))
    return [name for name in names if environ.get(name) and name not in file]


def _wanted(environ: Mapping[str, str]) -> tuple[str, ...]:
    """KEPT, and what Prefect's server is told of its connections to PostgreSQL: names of Prefect's, without end."""
    return (*KEPT, *connection_settings(environ))


def _is_secret(environ: Mapping[str, str], name: str) -> bool:
    """Whether a value that is usually none has a password in it, as a proxy's address may, with or without a
    scheme before it.
    """
    value = environ.get(name, "")
    return without_passwords(value) != value or (name.upper() in _PROXIES and "@" in value)


def _named_by_recipes(project: Path, environ: Mapping[str, str]) -> list[str]:
    """The variables that the project's recipes take secrets from; none of a recipe that cannot be read."""
    folder = project / "recipes"
    found: list[str] = []
    for path in recipe_files([folder]) if folder.is_dir() else []:
        try:
            found += secret_variables(read_document(path).data, environ)
        except (LoralineError, OSError, ValueError):
            continue
    return found
