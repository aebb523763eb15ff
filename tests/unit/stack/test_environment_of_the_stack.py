"""Where a part's environment comes from: this shell, the stack's own file, and what a unit is given of both."""

import os
import re
from pathlib import Path

import pytest

from flows.cli import main
from flows.stack import boot, starting
from flows.stack.environment_file import environment_file, read_environment
from flows.stack.settings import StackSettings
from flows.stack.state import StackState
from flows.stack.unit_environment import KEPT, SECRETS, kept, not_in_file
from tasks.errors import UserError
from tasks.home import Home

ROOT = Path(__file__).resolve().parents[3]
FIRST = "https://hooks.example/services?channel=ops&token=a1"
SECOND = "https://pager.example/room#night"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home((tmp_path / "home").resolve())
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    for name in ("LORALINE_WEBHOOKS", "LORALINE_WEBHOOK_SECRET"):
        # Set first, so that what a test leaves is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    environment_file(home).parent.mkdir(parents=True)
    return home


def healthy(*_: object) -> StackState:
    """In place of a stack that starts."""
    return StackState(running=True, healthy=True, home="")


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_up_takes_webhooks_from_the_stacks_file_as_systemd_reads_it(
    state: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quote: str,
) -> None:
    environment_file(state).write_text(
        f"# who is told\nLORALINE_WEBHOOKS={quote}{FIRST} {SECOND}{quote}\n"
        "LORALINE_WEBHOOK_SECRET=of the file\n"
    )
    monkeypatch.setattr(starting, "bring_up", healthy)
    monkeypatch.setenv("LORALINE_WEBHOOK_SECRET", "of this shell")
    assert main(["up"]) == 0
    assert os.environ["LORALINE_WEBHOOKS"].split() == [FIRST, SECOND]
    assert os.environ["LORALINE_WEBHOOK_SECRET"] == "of this shell"
    told = capsys.readouterr().err
    assert f"From {environment_file(state)}: LORALINE_WEBHOOKS." in told
    assert "hooks.example" not in told


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=one two  ", "one two"),
        ("A='one' \"two\"", "onetwo"),
        (r'A="a \"word\", \$5, a \\ and \n"', r'a "word", $5, a \ and \n'),
        (r"A='a\b'", r"a\b"),
        (r"A=a\ b", "a b"),
        ("A=it's", "it's"),
        ("A=one \\\n two", "one  two"),
        ("A=", ""),
        ("A=x # no comment", "x # no comment"),
        ("; A=1\n# A=2\n\n A = 3", "3"),
    ],
)
def test_quotes_and_backslashes_mean_what_they_mean_to_systemd(
    tmp_path: Path, text: str, value: str
) -> None:
    """systemd.exec(5), EnvironmentFile=."""
    file = tmp_path / "environment"
    file.write_text(text)
    assert read_environment(file) == {"A": value}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("export A=geheim", "2: this line is no NAME=value \\(without `export`\\)"),
        ("geheim", "2: this line is no NAME=value"),
        ("A='geheim", "2: a quote is not closed"),
    ],
)
def test_a_line_that_gives_nothing_is_told_by_its_number_and_not_by_its_text(
    tmp_path: Path, line: str, words: str
) -> None:
    file = tmp_path / "environment"
    file.write_text(f"B=1\n{line}\n")
    with pytest.raises(UserError, match=words) as refused:
        read_environment(file)
    assert "geheim" not in str(refused.value)


def test_a_stack_that_could_not_be_deployed_to_is_up_and_says_so_by_its_exit_code(
    state: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        starting,
        "bring_up",
        lambda *_: healthy().model_copy(update={"not_deployed": ["a.yaml: its cron"]}),
    )
    assert main(["up"]) == 1
    assert main(["up", "--json"]) == 1
    assert '"a.yaml: its cron"' in capsys.readouterr().out


def test_whatever_goes_wrong_while_deploying_is_told_and_not_raised(
    state: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is raised there stops a stack whose servers are healthy."""
    from flows.stack.deploying import apply

    def fails(*_: object, **__: object) -> None:
        raise ValueError("a library's own")

    monkeypatch.setattr("flows.deploying.apply_deployments", fails)
    told: list[str] = []
    problems = apply(state, StackSettings(project=tmp_path), {}, told.append)
    assert len(problems) == 1
    assert "a library's own" in problems[0]
    assert "`loraline deploy` tries again" in problems[0]
    assert told == [f"Not deployed: {problems[0]}"]


OTHERWISE = {
    "LORALINE_HOME": "the unit's option --home",
    "LORALINE_PROJECT": "the unit's option --project, which gives it to each part",
    "LORALINE_POSTGRES": "a unit whose file lacks it is not installed",
    "LORALINE_DEBUG": "only a command's own traceback on a terminal",
    "LORALINE_STACK": "set for each process of a stack, to find it again",
    "LORALINE_PART": "the same",
    "LORALINE_WORKER": "set for a worker's processes, to find them again",
}
"""Variables that the unit needs not from this shell, each with its reason."""


def test_every_variable_that_the_code_reads_reaches_the_unit_or_is_told() -> None:
    sources = [*(ROOT / "flows").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    read = set(re.findall(r"""["'](LORALINE_[A-Z_]+)["']""", text))
    assert len(read) > 10
    assert not read - set(KEPT) - set(SECRETS) - set(OTHERWISE)
    assert not set(OTHERWISE) - read, "variables that are read no longer"
    assert not set(KEPT) & set(SECRETS)


def test_the_unit_keeps_how_prefect_s_server_connects_to_postgresql(tmp_path: Path) -> None:
    prefix = "PREFECT_SERVER_DATABASE_"
    settings = {
        f"{prefix}SQLALCHEMY_CONNECT_ARGS_STATEMENT_CACHE_SIZE": "0",
        f"{prefix}SQLALCHEMY_POOL_SIZE": "20",
        f"{prefix}CONNECTION_TIMEOUT": "30",
    }
    # Those of another server, which no part of the stack is given.
    other = {f"{prefix}CONNECTION_URL": "postgresql+asyncpg://else", f"{prefix}TIMEOUT": "1"}
    assert kept({**settings, **other}) == settings
    secret = {f"{prefix}SQLALCHEMY_SOMETHING": "postgresql://me:geheim@db"}
    assert kept(secret) == {}
    assert not_in_file(secret, {}, tmp_path) == list(secret)


@pytest.mark.parametrize("prefix", ["PREFECT_SERVER", "PREFECT_SERVER_API"])
def test_the_unit_keeps_whose_pages_may_call_prefect(prefix: str) -> None:
    given = {f"{prefix}_CORS_ALLOWED_ORIGINS": "https://dashboard.example"}
    assert kept(given) == given


def test_the_unit_keeps_what_is_no_secret_and_names_what_its_file_lacks(
    state: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipes" / "shop.yaml"
    recipe.parent.mkdir()
    recipe.write_text("dataset: {sources: [{type: sql, url_variable: SHOP_DATABASE_URL}]}\n")
    (recipe.parent / "broken.yaml").write_text("{")
    environ = {
        "LORALINE_STORE": "s3://bucket/store",
        "LORALINE_GPU_LOCKS": "/srv/locks",
        "HF_ENDPOINT": "https://mirror.example",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "https_proxy": "http://proxy:3128",
        "HTTP_PROXY": "http://me:geheim@proxy:3128",
        "ALL_PROXY": "me:geheim@proxy:3128",
        "LORALINE_LOCK_DATABASE": "postgresql://db/locks?password=geheim",
        "LORALINE_WEBHOOKS": "https://hooks.example/geheim",
        "HF_TOKEN": "geheim",
        "AWS_SECRET_ACCESS_KEY": "geheim",
        "SHOP_DATABASE_URL": "geheim",
        "OTHER": "is nobody's",
    }
    assert set(kept(environ)) == {
        *("LORALINE_STORE", "LORALINE_GPU_LOCKS", "HF_ENDPOINT", "SSL_CERT_FILE", "https_proxy"),
    }
    assert set(not_in_file(environ, {"HF_TOKEN": "of the file"}, tmp_path)) == {
        *("HTTP_PROXY", "ALL_PROXY", "LORALINE_LOCK_DATABASE", "LORALINE_WEBHOOKS"),
        *("AWS_SECRET_ACCESS_KEY", "SHOP_DATABASE_URL"),
    }
    monkeypatch.setattr(boot, "systemd_environment", dict)
    monkeypatch.setattr("flows.stack.systemd.systemctl", lambda *_: None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    lines = boot.install(state, StackSettings(project=tmp_path))
    assert any(line.startswith("SHOP_DATABASE_URL is set in this shell") for line in lines)
    assert "geheim" not in "\n".join([*lines, boot.unit_path(state).read_text()])
    assert 'Environment="LORALINE_STORE=s3://bucket/store"' in boot.unit_path(state).read_text()
