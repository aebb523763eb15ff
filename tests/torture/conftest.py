"""These tests take minutes and run by `make torture` alone."""

from pathlib import Path

import pytest

from tests.flows.conftest import first_run, fresh, small

__all__ = ["first_run", "fresh", "small"]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.getoption("markexpr") == "torture" else True
