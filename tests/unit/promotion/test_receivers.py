"""On the command line the event goes to the Prefect that the user has chosen, and no server is started for it."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.receivers import command_notices
from tasks.home import Home

ROOT = Path(__file__).resolve().parents[3]


def test_without_a_server_only_the_webhooks_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORALINE_WEBHOOKS", "https://a.example/x  https://b.example/y")
    targets = command_notices(Home(tmp_path)).targets
    assert len(targets) == 2
    assert {target.shown for target in targets.values()} == {
        "https://a.example",
        "https://b.example",
    }


def test_the_server_of_the_user_s_profile_is_told_with_its_password(tmp_path: Path) -> None:
    profiles = tmp_path / "user" / ".prefect" / "profiles.toml"
    profiles.parent.mkdir(parents=True)
    profiles.write_text(
        'active = "work"\n[profiles.work]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
        'PREFECT_API_AUTH_STRING = "ada:geheim"\n'
    )
    code = (
        "from pathlib import Path\nfrom flows.receivers import command_notices\n"
        "from tasks.home import Home\n"
        "target = command_notices(Home(Path('.'))).targets['prefect']\n"
        "print(target.url, target.secret, target.shown)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        # Nothing of this process's: it may be a client of another server.
        env={"HOME": str(tmp_path / "user"), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "http://127.0.0.1:9/api",
        "Basic",
        "YWRhOmdlaGVpbQ==",
        "http://127.0.0.1",
    ]
