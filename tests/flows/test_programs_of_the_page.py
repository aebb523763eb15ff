"""The programs of others that `docs/operations.md` has typed: they are asked for what they know."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def documented(program: str) -> str:
    """The page's command of this program."""
    (command,) = set(re.findall(rf"`((?:sudo )?{program} [^`]+)`", PAGE))
    return str(command)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program} here")


def asked(command: list[str], home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "HOME": str(home), "LC_ALL": "C", **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs("ssh")
def test_the_tunnel_is_one_to_both_servers_and_to_nothing_else(tmp_path: Path) -> None:
    program, *arguments = documented("ssh").split()
    # What ssh would do, without doing it.
    done = asked([program, "-F", "none", "-T", "-G", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    forwards = re.findall(r"^localforward (.*)$", done.stdout, re.MULTILINE)
    assert forwards == ["4200 [127.0.0.1]:4200", "5000 [127.0.0.1]:5000"]
    assert re.findall(r"^hostname (.*)$", done.stdout, re.MULTILINE) == ["the-machine"]


@needs("journalctl")
def test_the_journal_is_asked_for_the_unit_in_words_that_it_knows(tmp_path: Path) -> None:
    done = asked(documented("journalctl").split(), tmp_path, PAGER="cat")
    # Where nobody logs in there is no journal.
    assert done.returncode == 0 or "No journal files" in done.stderr, done.stderr
    assert "unrecognized" not in done.stderr


@needs("loginctl")
def test_lingering_is_a_thing_that_can_be_enabled(tmp_path: Path) -> None:
    sudo, program, verb, _user = documented("loginctl").split()
    assert (sudo, program) == ("sudo", "loginctl")
    # Not done: it would change the machine on which the tests run.
    assert re.search(
        rf"^\s*{verb} \[USER", asked([program, "--help"], tmp_path).stdout, re.MULTILINE
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs("make")
def test_a_clone_is_brought_up_to_date_and_installed_as_the_page_says(tmp_path: Path) -> None:
    (line,) = re.findall(r"^3\. Install the new version \((.*)\)\.$", PAGE, re.MULTILINE)
    pull, install = re.findall(r"`([^`]+)`", line)
    published, clone = tmp_path / "published", tmp_path / "clone"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost"]
    for at, arguments in (
        (tmp_path, ["clone", "--quiet", f"file://{ROOT}", str(published)]),
        (tmp_path, ["clone", "--quiet", f"file://{published}", str(clone)]),
        (published, ["commit", "--quiet", "--allow-empty", "-m", "A newer version"]),
    ):
        done = subprocess.run([*git, *arguments], cwd=at, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for command in (pull, install, ".venv/bin/loraline --version"):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=clone,
            env={**os.environ, "HOME": str(tmp_path), "PIP_NO_CACHE_DIR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
    assert done.stdout.startswith("loraline ")
    heads = [
        asked(["git", "-C", str(it), "rev-parse", "HEAD"], tmp_path) for it in (published, clone)
    ]
    assert heads[0].stdout == heads[1].stdout != ""
