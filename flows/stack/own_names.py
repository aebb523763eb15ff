"""The names by which browsers may ask for MLflow: it refuses all others, against DNS rebinding."""

import os
import socket
from collections.abc import Mapping
from functools import cache

import psutil

from flows.stack.exposure import is_loopback
from flows.stack.settings import StackSettings

HOSTS = "MLFLOW_SERVER_ALLOWED_HOSTS"
ORIGINS = "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"
"""MLflow's own settings, separated by commas: of a Host header, and of a page that may change something."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def allowed_names(settings: StackSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Both settings: what a person gave, and what this machine is called where it listens.

    Not MLflow's default of private addresses: its `10.*` takes 10.example.com, too, which anybody may own.
    """
    names = dict.fromkeys((*_LOOPBACK, settings.client_host.lower()))
    if not is_loopback(settings.host):
        names.update(dict.fromkeys(_names_of_this_machine()))
    port = "" if settings.mlflow_port == 80 else f":{settings.mlflow_port}"
    # Any port: the name is what an attacker lacks, and tunnels have other ports. `[` begins a class of signs.
    hosts = [form for name in names for form in (name, f"{name.replace('[', '[[]')}:*")]
    return {
        HOSTS: _with(environ.get(HOSTS, ""), hosts),
        ORIGINS: _with(environ.get(ORIGINS, ""), [f"http://{name}{port}" for name in names]),
    }


def _names_of_this_machine() -> list[str]:
    """As browsers write them: in lower case, IPv6 in brackets."""
    addresses = [
        address.address
        for of_interface in psutil.net_if_addrs().values()
        for address in of_interface
        # A link-local address with its zone is nothing that a browser takes.
        if address.family in (socket.AF_INET, socket.AF_INET6) and "%" not in address.address
    ]
    found = (os.uname().nodename, _full_name(), *addresses)
    return [f"[{name}]" if ":" in name else name.lower() for name in found]


@cache
def _full_name() -> str:
    """As the name service has it, which may take half a minute to say that it does not answer."""
    try:
        return socket.getfqdn()
    except UnicodeError:
        return os.uname().nodename


def _with(given: str, ours: list[str]) -> str:
    return ",".join((*filter(None, [given.strip(" ,")]), *ours))
