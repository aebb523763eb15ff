"""Nobody but this machine may reach the stack, unless both servers ask for a password."""

import importlib.util
import ipaddress
from collections.abc import Mapping

from tasks.errors import UserError

PREFECT_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"
MLFLOW_PASSWORDS = (
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
"""The first two are the server's, the others are what our own workers log in with."""
NO_RESTART = 78
"""EX_CONFIG of sysexits.h. With it `loraline up --foreground` tells what starts it that no restart helps."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open(host: str, environ: Mapping[str, str]) -> None:
    """Raises: UserError when `host` is reachable from elsewhere and a password is missing."""
    if is_loopback(host):
        return
    missing = [
        name for name in (PREFECT_PASSWORD, *MLFLOW_PASSWORDS) if not environ.get(name, "").strip()
    ]
    if missing:
        raise UserError(
            f"With --host {host} other machines could reach Prefect and MLflow, and whoever reaches them "
            f"runs code on this one. Not set: {', '.join(missing)}. Set {PREFECT_PASSWORD}=user:password "
            "for Prefect, and for MLflow the administrator's password (at least 12 characters), a secret "
            "key, and the user and password that the workers log in with; or leave --host away and come "
            f"through a tunnel: ssh -L 4200:127.0.0.1:4200 -L 5000:127.0.0.1:5000 this-machine"
        )
    if ":" not in environ[PREFECT_PASSWORD]:
        raise UserError(f"{PREFECT_PASSWORD} must be user:password, with the colon.")
    if importlib.util.find_spec("flask_wtf") is None:
        raise UserError(
            "MLflow's authentication needs a package that is not installed: pip install 'mlflow[auth]'"
        )
