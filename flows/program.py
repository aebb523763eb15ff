"""How the person who reads our messages can call this program."""

import shutil
import sys
from pathlib import Path


def program(folder: Path | None = None) -> str:
    """`loraline` where the shell finds this very program, else its path, relative to `folder` (default:
    the working directory) when it lies below it.
    """
    folder = folder or Path.cwd()
    this = Path(sys.argv[0])
    if this.name != "loraline" or not this.exists():
        # Started as a module, or called from Python.
        this = Path(sys.executable).with_name("loraline")
    found = shutil.which("loraline")
    if found and Path(found).resolve() == this.resolve():
        return "loraline"
    this = this.absolute()
    return str(this.relative_to(folder) if this.is_relative_to(folder) else this)
