"""Recipes' schedules on a real Prefect server: created, changed, retired, and never touched without need."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from flows import recipe_memory
from flows.stack.settings import StackSettings
from tasks.home import Home

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("prefect_server")]

RECIPE = """\
name: {name}
base: {base}
dataset:
  sources:
    - {{type: jsonl, path: rows.jsonl}}
"""
NIGHTLY = 'schedule: {cron: "0 2 * * *", timezone: Europe/Berlin}\n'


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    return folder


def write(folder: Path, name: str, schedule: str, starter: Path) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, base=starter) + schedule)
    return path


def apply(tmp_path: Path, *places: Path, file: Any = None) -> Any:
    from flows.deploying import apply_deployments

    return apply_deployments(Home(tmp_path / "home"), places, file=file)


def schedules(deployment: str = "retrain") -> dict[str, Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name(f"{deployment}/{deployment}")
        return {it.slug: it for it in client.read_deployment_schedules(there.id)}


def deployment_id(name: str) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"{name}/{name}").id


def test_a_recipe_has_its_schedule_and_deploying_again_changes_nothing(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    path = write(recipes, "first", NIGHTLY, starter)
    write(recipes, "unscheduled", "", starter)
    applied = apply(tmp_path, recipes)
    assert applied.problems == []
    assert applied.schedules == 1
    (schedule,) = schedules().values()
    assert schedule.slug == "first"
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "Europe/Berlin")
    assert schedule.parameters == {"recipe": str(path)}
    assert schedule.active
    assert apply(tmp_path, recipes).changed == []


def test_the_server_refuses_a_run_whose_form_was_filled_in_wrong(
    tmp_path: Path, recipes: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    apply(tmp_path, recipes)
    with get_client(sync_client=True) as client:
        asked = {"recipe": "recipes/a.yaml", "overrides": ["seed=7"]}
        run = client.create_flow_run_from_deployment(deployment_id("retrain"), parameters=asked)
        assert run.parameters["overrides"] == ["seed=7"]
        asked["overrides"] = ["trainig.peft_config.r=8"]
        with pytest.raises(PrefectHTTPStatusError, match="trainig"):
            client.create_flow_run_from_deployment(deployment_id("retrain"), parameters=asked)


def test_what_an_operator_paused_stays_paused_even_when_its_time_changes(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    from prefect.client.orchestration import get_client

    write(recipes, "paused", NIGHTLY, starter)
    apply(tmp_path, recipes)
    with get_client(sync_client=True) as client:
        client.update_deployment_schedule(
            deployment_id("retrain"), schedules()["paused"].id, active=False
        )
    # Prefect took the parameters away with the pause.
    assert apply(tmp_path, recipes).changed == [
        "schedule retrain/paused: its parameters restored (still paused)"
    ]
    assert apply(tmp_path, recipes).changed == []
    write(recipes, "paused", NIGHTLY.replace("0 2", "30 4"), starter)
    assert apply(tmp_path, recipes).changed == [
        "schedule retrain/paused: now 30 4 * * * Europe/Berlin (still paused)"
    ]
    assert not schedules()["paused"].active


def test_a_recipe_without_the_section_any_more_has_its_schedule_retired(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    write(recipes, "kept", NIGHTLY, starter)
    write(recipes, "dropped", NIGHTLY, starter)
    gone = write(recipes, "gone", NIGHTLY, starter)
    apply(tmp_path, recipes)
    write(recipes, "dropped", "", starter)
    gone.unlink()
    applied = apply(tmp_path, recipes)
    assert len(applied.changed) == 2
    assert {"dropped", "gone"} & set(schedules()) == set()
    assert "kept" in schedules()


def test_one_named_recipe_leaves_all_others_alone(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    other = write(recipes, "other", NIGHTLY, starter)
    named = write(recipes, "named", NIGHTLY, starter)
    apply(tmp_path, recipes)
    other.unlink()
    write(recipes, "named", "", starter)
    apply(tmp_path, named)
    assert "named" not in schedules()
    assert "other" in schedules()


def test_a_recipe_that_went_with_its_folder_is_retired_and_one_that_is_only_away_is_not(
    tmp_path: Path, recipes: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team, mounted = recipes / "team", tmp_path / "mounted"
    for place in (team, mounted):
        place.mkdir()
    # Git leaves no empty folder behind.
    write(team, "disbanded", NIGHTLY, starter)
    (recipes / "linked").symlink_to(mounted)
    write(mounted, "unreachable", NIGHTLY, starter)
    apply(tmp_path, recipes, recipes / "linked" / "unreachable.yaml")
    disk = recipes / "disk"
    (disk / "a").mkdir(parents=True)
    write(disk / "a", "asleep", NIGHTLY, starter)
    with monkeypatch.context() as another_device:
        another_device.setattr(recipe_memory, "device_of", lambda _: 7)
        apply(tmp_path, recipes)
    assert {"disbanded", "unreachable", "asleep"} <= set(schedules())
    shutil.rmtree(team)
    # What is left of a disk that is not mounted is an empty folder.
    (disk / "a").rename(tmp_path / "a")
    mounted.rename(tmp_path / "unmounted")
    applied = apply(tmp_path, recipes)
    gone = f"schedule retrain/disbanded: retired, {team / 'disbanded.yaml'} is gone"
    assert applied.changed == [gone]
    assert {"unreachable", "asleep"} <= set(schedules())
    away = sorted(line.partition(" is away with its folder")[0] for line in applied.problems)
    there = disk / "a" / "asleep.yaml", recipes / "linked" / "unreachable.yaml"
    assert away == [str(path) for path in there]
    assert "delete the schedule asleep on the page of the deployment retrain" in str(
        applied.problems
    )
    (tmp_path / "a").rename(disk / "a")
    shutil.rmtree(disk)
    (tmp_path / "unmounted").rename(mounted)
    (mounted / "unreachable.yaml").unlink()
    apply(tmp_path, recipes)


def test_the_last_recipe_of_all_is_retired_with_its_folder(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    (recipes / "alone").mkdir()
    write(recipes / "alone", "last-of-all", NIGHTLY, starter)
    apply(tmp_path, recipes)
    shutil.rmtree(recipes / "alone")
    assert not any(recipes.iterdir())
    assert "retired" in str(apply(tmp_path, recipes).changed)
    assert "last-of-all" not in schedules()


def test_a_stack_whose_recipes_are_away_keeps_their_schedules_and_says_so(
    tmp_path: Path, recipes: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.stack import deploying as at_the_start

    monkeypatch.delenv("PREFECT_PROFILE", raising=False)
    settings, said = StackSettings(project=recipes.parent), []

    def start() -> list[str]:
        said.clear()
        return at_the_start.apply(Home(tmp_path / "home"), settings, {}, said.append)

    recipe = write(recipes, "went-with-all", NIGHTLY, starter)
    assert start() == []
    assert "went-with-all" in schedules()
    recipe.parent.rename(tmp_path / "unmounted")
    (problem,) = start()
    assert problem.startswith(f"{recipe} is away with its folder")
    assert said == [f"Not deployed: {problem}"]
    assert "went-with-all" in schedules()
    (tmp_path / "unmounted").rename(recipe.parent)
    assert start() == []


def test_a_folder_that_is_empty_may_be_where_a_disk_is_not_mounted(
    tmp_path: Path, recipes: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = recipes / "disk"
    disk.mkdir()
    on_disk = write(disk, "on-the-disk", NIGHTLY, starter)
    (recipes / "link.yaml").symlink_to(write(tmp_path, "linked-to", NIGHTLY, starter))
    with monkeypatch.context() as mounted:
        mounted.setattr(recipe_memory, "device_of", lambda _: 7)
        apply(tmp_path, recipes)
    assert {"on-the-disk", "linked-to"} <= set(schedules())
    shutil.copy(on_disk, tmp_path / "kept.yaml")
    on_disk.unlink()
    (tmp_path / "linked-to.yaml").rename(tmp_path / "elsewhere.yaml")
    applied = apply(tmp_path, recipes)
    assert applied.changed == []
    away = sorted(line.partition(" is away")[0] for line in applied.problems if " is away" in line)
    assert away == [str(on_disk), str(recipes / "link.yaml")]
    shutil.copy(tmp_path / "kept.yaml", on_disk)
    assert apply(tmp_path, on_disk).changed == []
    # Where it lay on the device that is there, it was deleted.
    on_disk.unlink()
    (recipes / "link.yaml").unlink()
    changed = sorted(apply(tmp_path, recipes).changed)
    assert [line.rpartition(" retired, ")[2] for line in changed] == [
        f"{recipes / 'link.yaml'} is gone",
        f"{on_disk} is gone",
    ]


@pytest.mark.parametrize("paused", [False, True])
def test_a_named_recipe_that_bears_another_name_has_one_schedule_and_its_pause(
    tmp_path: Path, recipes: Path, starter: Path, paused: bool
) -> None:
    from prefect.client.orchestration import get_client

    bystander = write(recipes, "bystander", NIGHTLY, starter)
    path = write(recipes, "maiden", NIGHTLY, starter)
    apply(tmp_path, recipes)
    if paused:
        with get_client(sync_client=True) as client:
            client.update_deployment_schedule(
                deployment_id("retrain"), schedules()["maiden"].id, active=False
            )
    path.write_text(path.read_text().replace("name: maiden", "name: married"))
    bystander.unlink()
    applied = apply(tmp_path, path)
    assert applied.changed == [
        "schedule retrain/married: created, 0 2 * * * Europe/Berlin" + " (paused)" * paused,
        f"schedule retrain/maiden: retired, {path} is named 'married' now",
    ]
    assert "maiden" not in schedules()
    assert schedules()["married"].active == (not paused)
    assert "bystander" in schedules()
    path.unlink()
    apply(tmp_path, recipes)


def test_a_broken_recipe_keeps_its_schedule_and_stops_no_other(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    write(recipes, "sound", NIGHTLY, starter)
    broken = write(recipes, "broken", NIGHTLY, starter)
    apply(tmp_path, recipes)
    broken.write_text(broken.read_text().replace("dataset:", "datset:"))
    write(recipes, "sound", NIGHTLY.replace("0 2", "0 5"), starter)
    applied = apply(tmp_path, recipes)
    assert len(applied.problems) == 1
    assert "datset" in applied.problems[0]
    assert schedules()["broken"].active
    assert schedules()["sound"].schedule.cron == "0 5 * * *"


def test_a_recipe_that_prefect_does_not_take_stops_no_other(
    tmp_path: Path, recipes: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As an expression that Prefect refuses once it is upgraded.
    monkeypatch.setattr("tasks.schedule.check_cron", lambda _: None)
    write(recipes, "early", NIGHTLY, starter)
    late = write(recipes, "late", NIGHTLY.replace("0 2 * * *", "0 2 * * 5L"), starter)
    write(recipes, "heard-of", "schedule: {after_new_rows: 500}\n", starter)
    # Read after the others, whose schedules it must not keep from being applied.
    (recipes / "a-list.yaml").write_bytes(b"\xff\xfe\x00")
    write(recipes, "zealous", NIGHTLY, starter)
    applied = apply(tmp_path, recipes)
    assert applied.schedules == 2
    assert {"early", "zealous"} <= set(schedules())
    assert "late" not in schedules()
    assert "heard-of" in schedules("watch-data")
    assert len(applied.problems) == 2
    (problem,) = (line for line in applied.problems if str(late) in line)
    assert "5L" in problem
    # What it had before stays.
    late.write_text(late.read_text().replace("5L", "5"))
    apply(tmp_path, recipes)
    late.write_text(late.read_text().replace("* 5", "* 5L"))
    apply(tmp_path, recipes)
    assert schedules()["late"].schedule.cron == "0 2 * * 5"


def test_two_recipes_of_one_name_are_both_refused(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    one = write(recipes, "twin", NIGHTLY, starter)
    (recipes / "copy.yaml").write_text(one.read_text())
    applied = apply(tmp_path, recipes)
    assert len(applied.problems) == 2
    assert "twin" not in schedules()


@pytest.mark.parametrize(("name", "copied"), [("edited", "edited"), ("draft", "draft-before")])
def test_a_copy_that_an_editor_hides_is_no_recipe(
    tmp_path: Path, recipes: Path, starter: Path, name: str, copied: str
) -> None:
    path = write(recipes, name, NIGHTLY, starter)
    hidden = recipes / ".ipynb_checkpoints"
    hidden.mkdir()
    # By name it can be scheduled; the folder's recipe takes its schedule over, or retires it.
    apply(tmp_path, write(hidden, copied, NIGHTLY, starter))
    assert copied in schedules()
    assert apply(tmp_path, recipes).problems == []
    assert schedules()[name].parameters == {"recipe": str(path)}
    assert copied == name or copied not in schedules()
    assert apply(tmp_path, recipes).changed == []


@pytest.mark.parametrize("second", [NIGHTLY, "schedule: {after_new_rows: 500}\n"])
def test_a_recipe_takes_no_schedule_from_one_of_its_name_that_lies_elsewhere(
    tmp_path: Path, recipes: Path, starter: Path, second: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    first = write(recipes, "namesake", NIGHTLY, starter)
    other = write(elsewhere, "namesake", second, starter)
    apply(tmp_path, first)
    applied = apply(tmp_path, elsewhere)
    assert (applied.changed, applied.schedules) == ([], 0)
    (problem,) = applied.problems
    assert str(other) in problem
    assert str(first) in problem
    assert schedules()["namesake"].parameters == {"recipe": str(first)}
    assert "namesake" not in schedules("watch-data")
    # Named by another way it is the same file.
    (tmp_path / "link").symlink_to(recipes)
    assert apply(tmp_path, tmp_path / "link" / first.name).problems == []
    apply(tmp_path, first)
    # The ways out: one that has moved takes its schedule along, and so does one whose namesake wants none.
    if second == NIGHTLY:
        first.unlink()
        (line,) = apply(tmp_path, elsewhere).changed
        assert line == f"schedule retrain/namesake: runs {other} instead of {first}"
    else:
        write(recipes, "namesake", "", starter)
        assert apply(tmp_path, other).problems == []
        assert schedules("watch-data")["namesake"].parameters == {"recipe": str(other)}
    other.unlink()
    apply(tmp_path, recipes, elsewhere)


def test_a_namesake_in_a_home_that_is_closed_to_us_keeps_its_schedule(
    tmp_path: Path, recipes: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    hidden = write(recipes, "hidden", NIGHTLY, starter)
    mine = write(elsewhere, "hidden", NIGHTLY, starter)
    apply(tmp_path, hidden)
    stat = Path.stat

    def closed(path: Path, **options: Any) -> Any:
        # No mode of a folder keeps root out.
        if path.is_relative_to(recipes):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    with monkeypatch.context() as other_user:
        other_user.setattr(Path, "stat", closed)
        applied = apply(tmp_path, elsewhere)
    (problem,) = applied.problems
    assert f"{mine}: name: 'hidden' is scheduled already, by {hidden}" in problem
    assert (applied.changed, applied.schedules) == ([], 0)
    assert schedules()["hidden"].parameters == {"recipe": str(hidden)}
    hidden.unlink()
    mine.unlink()
    apply(tmp_path, recipes, elsewhere)


def test_a_schedule_whose_disk_is_not_mounted_is_not_retired(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    elsewhere = tmp_path / "share"
    elsewhere.mkdir()
    path = write(elsewhere, "shared", NIGHTLY, starter)
    apply(tmp_path, path)
    elsewhere.rename(tmp_path / "unmounted")
    apply(tmp_path, recipes)
    assert "shared" in schedules()


def test_data_that_is_watched_gives_a_schedule_of_watch_data(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    path = write(recipes, "watched", "schedule: {after_new_rows: 500}\n", starter)
    apply(tmp_path, recipes)
    assert "watched" not in schedules()
    assert schedules("watch-data")["watched"].parameters == {"recipe": str(path)}
    write(recipes, "watched-too", "schedule: {after_new_rows: 500}\n", starter)
    apply(tmp_path, recipes)
    looks = [
        it.schedule
        for it in schedules("watch-data").values()
        if it.slug in ("watched", "watched-too")
    ]
    assert [it.interval for it in looks] == [timedelta(minutes=15)] * 2
    assert len({it.anchor_date for it in looks}) == 2, "two looks in one second"
    assert apply(tmp_path, recipes).changed == []


def test_a_schedule_made_by_hand_in_the_ui_is_nobodys_to_retire(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    write(recipes, "mine", NIGHTLY, starter)
    apply(tmp_path, recipes)
    with get_client(sync_client=True) as client:
        client.create_deployment_schedules(
            deployment_id("retrain"),
            [DeploymentScheduleCreate(schedule=CronSchedule(cron="5 5 * * *"), slug="by-hand")],
        )
    apply(tmp_path, recipes)
    assert "by-hand" in schedules()


def test_a_schedule_that_stands_in_the_file_no_more_is_retired_and_no_other(tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    from flows.deployment_file import DeploymentFile, FixedSchedule, read_deployments

    shipped = read_deployments()
    own = shipped.deployment("reconcile-registry")

    def deploy(*slugs: str) -> list[str]:
        fixed = tuple(FixedSchedule(slug=slug, cron="0 4 * * *") for slug in slugs)
        one = own.model_copy(update={"schedules": (*own.schedules, *fixed)})
        others = tuple(it for it in shipped.deployments if it.name != own.name)
        file = shipped.model_copy(update={"deployments": (*others, one)})
        assert isinstance(file, DeploymentFile)
        return apply(tmp_path, file=file).changed

    def there() -> set[str]:
        return set(schedules(own.name))

    deploy("weekly", "monthly")
    with get_client(sync_client=True) as client:
        by_hand = DeploymentScheduleCreate(schedule=CronSchedule(cron="5 5 * * *"), slug="by-hand")
        client.create_deployment_schedules(deployment_id(own.name), [by_hand])
        # Somebody took this one away, and made another of the name.
        monthly = schedules(own.name)["monthly"]
        client.delete_deployment_schedule(deployment_id(own.name), monthly.id)
        again = by_hand.model_copy(update={"slug": "monthly"})
        client.create_deployment_schedules(deployment_id(own.name), [again])
    assert deploy() == [
        "schedule reconcile-registry/weekly: retired, it stands in the file no more"
    ]
    assert there() == {"every-minute", "by-hand", "monthly"}
    assert deploy() == []
    # What stands there again is made anew, and what a person made of the name becomes the file's.
    deploy("weekly", "by-hand")
    assert there() == {"every-minute", "by-hand", "monthly", "weekly"}
    deploy()
    assert there() == {"every-minute", "monthly"}


def test_an_automation_that_was_switched_off_stays_off(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    from prefect.client.orchestration import get_client

    apply(tmp_path, recipes)
    with get_client(sync_client=True) as client:
        (found,) = client.read_automations_by_name("loraline-retrain-wanted")
        client.pause_automation(found.id)
        assert apply(tmp_path, recipes).changed == []
        (found,) = client.read_automations_by_name("loraline-retrain-wanted")
    assert not found.enabled


def test_the_list_says_when_each_is_due_and_how_it_went(
    tmp_path: Path, recipes: Path, starter: Path
) -> None:
    from flows.commands.schedules import list_schedules

    write(recipes, "listed", NIGHTLY, starter)
    apply(tmp_path, recipes)
    row = next(row for row in list_schedules() if row["name"] == "listed")
    assert (row["cron"], row["timezone"], row["paused"]) == ("0 2 * * *", "Europe/Berlin", False)
    due = datetime.fromisoformat(row["next_run"])
    assert due.astimezone(ZoneInfo("Europe/Berlin")).strftime("%H:%M") == "02:00"
    assert row["last_outcome"] is None


@pytest.mark.parametrize(
    ("cron", "day"),
    [
        ("30 2 * * *", datetime(2027, 3, 28)),  # 02:30 does not exist
        ("30 2 * * *", datetime(2026, 10, 25)),  # 02:30 comes twice
    ],
)
def test_a_night_of_daylight_saving_runs_once(cron: str, day: datetime) -> None:
    import asyncio

    # The server's class: what really decides.
    from prefect.server.schemas.schedules import CronSchedule

    zone = ZoneInfo("Europe/Berlin")
    start = day.replace(tzinfo=zone)
    clock = CronSchedule(cron=cron, timezone="Europe/Berlin")
    dates = asyncio.run(clock.get_dates(5, start=start - timedelta(days=1)))
    runs = [it.astimezone(zone).date() for it in dates]
    assert runs.count(day.date()) == 1
    assert len(set(runs)) == len(runs)


def test_the_commands_deploy_and_list(tmp_path: Path, recipes: Path, starter: Path) -> None:
    import json
    import os
    import subprocess
    import sys

    from prefect.settings import get_current_settings

    def loraline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        root = str(Path(__file__).resolve().parents[2])
        return subprocess.run(
            [sys.executable, "-P", "-m", "flows.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    alone = loraline("deploy")
    assert alone.returncode == 1
    assert "`loraline up`" in alone.stderr
    write(recipes, "commanded", NIGHTLY, starter)
    (recipes / "wrong.yaml").write_text("name: wrong\nschedule: {cron: '0 2 * * *'}\n")
    api = {"PREFECT_API_URL": str(get_current_settings().api.url)}
    done = loraline("deploy", "--json", **api)
    assert done.returncode == 2, done.stderr
    answer = json.loads(done.stdout)
    assert any("retrain/commanded: created" in line for line in answer["changed"])
    assert "wrong.yaml" in answer["problems"][0]
    listed = json.loads(loraline("schedules", "--json", **api).stdout)["schedules"]
    assert "commanded" in {row["name"] for row in listed}
    assert "commanded" in loraline("schedules", **api).stdout
