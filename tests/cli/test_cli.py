"""The command line on an empty data folder: as a process of its own where that matters, else by its entry point."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli import main
from app.cli.doctor import settings_page
from app.cli.parser import build_parser
from app.cli.runs import read_fields
from app.cli.serve import read_seed_list
from app.errors import Invalid
from app.runs.routes import PAGES
from tests.experiments.test_advance import work_off
from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent


def preflab(*words: str, code: int = 0, stdin: str = "") -> str:
    """What the command prints; its exit code must be `code`. Errors come from standard error."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            ended = main(words)
        except SystemExit as error:  # argparse's way to end
            ended = int(error.code or 0)
    assert ended == code, f"{words}: exit code {ended}\n{out.getvalue()}\n{errors.getvalue()}"
    return errors.getvalue() if code else out.getvalue()


def preflab_process(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command as a process, with the environment of this test."""
    command = [sys.executable, "-m", "app.cli", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=170, env=env)


def as_json(*words: str) -> Any:
    return json.loads(preflab(*words, "--json"))


@pytest.fixture
def project(sqlite_database: str) -> None:
    """An account and a project, made by the commands."""
    preflab("user", "add", "ada")
    preflab("project", "add", "demo", "--owner", "ada", "--name", "Demo")


def test_an_empty_folder_is_told_step_by_step_what_to_do(data_dir: Path) -> None:
    refused = preflab_process("runs", "list")
    assert (refused.returncode, refused.stdout) == (1, "") and refused.stderr.count("\n") == 1
    assert "run `preflab db upgrade`" in refused.stderr
    assert "up to date" in preflab_process("db", "upgrade").stdout
    assert "preflab project add SLUG --owner NAME" in preflab("runs", "list", code=1)
    assert "preflab user add ada" in preflab("project", "add", "demo", "--owner", "ada", code=1)
    assert "http://127.0.0.1:8123/login/" in preflab("user", "add", "ada")
    preflab("project", "add", "demo", "--owner", "ada")
    assert "preflab runs launch KIND" in preflab("runs", "list")
    assert "preflab import checkpoint SOURCE" in preflab("checkpoints")
    assert "preflab experiment run demo" in preflab("experiment", "list")
    for words in (["runs", "list"], ["checkpoints"], ["experiment", "list"]):
        assert as_json(*words) == []


def test_accounts_projects_and_tokens(project: None) -> None:
    preflab("user", "add", "bob", "--password-stdin", stdin="correct horse\n")
    assert "already an account" in preflab("user", "add", "bob", code=1)
    assert "at least 10 characters" in preflab("user", "add", "eve", "--password-stdin", code=1, stdin="short\n")
    assert "bob is grader of demo" in preflab("user", "role", "bob", "grader")
    rows = {(row["name"], row["project"], row["role"]) for row in as_json("user", "list")}
    assert rows == {("ada", "demo", "owner"), ("bob", "demo", "grader")}
    assert as_json("user", "link", "bob")["login_url"].startswith("http://127.0.0.1:8123/login/")
    token = as_json("token", "add", "ada", "--label", "script")["token"]
    assert token.startswith("pl_") and token not in preflab("token", "list")
    assert [row["label"] for row in as_json("token", "list", "ada")] == ["script"]
    preflab("token", "revoke", str(as_json("token", "list")[0]["id"]))
    assert as_json("token", "list") == []
    preflab("project", "add", "second", "--owner", "ada")
    assert "say which with --project" in preflab("runs", "list", code=1)
    assert as_json("runs", "list", "--project", "second") == []
    assert "Projects: demo, second" in preflab("runs", "list", "--project", "third", code=1)


def test_runs_are_launched_shown_cancelled_and_resumed(project: None, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    path = str(tmp_path / "prompts.jsonl")
    run = as_json("import", "prompts", path, "--set", "dev_share=0", "--set", "ood_categories=[a, b]")
    assert (run["kind"], run["status"]) == ("import_prompts", "queued")
    assert (run["recipe"]["path"], run["recipe"]["ood_categories"]) == (path, ["a", "b"])
    assert "preflab up" in preflab("runs", "launch", "import_prompts", "--set", "shipped=demo")
    assert "dev_share" in preflab("import", "prompts", path, "--set", "dev_share=2", code=1)
    assert "There is no file" in preflab("import", "prompts", str(tmp_path / "absent"), code=1)
    assert "no kind of run called" in preflab("runs", "launch", "nonsense", code=1)
    assert "stays queued" in preflab("runs", "launch", "import_prompts", "--set", "shipped=demo", "--wait", code=1)
    assert [row["id"] for row in as_json("runs", "list")] == [3, 2, 1]
    assert as_json("runs", "cancel", "1")["status"] == "cancelled"
    assert "already cancelled" in preflab("runs", "cancel", "1", code=1)
    assert as_json("runs", "resume", "1")["status"] == "queued"
    assert "kind: import_prompts" in preflab("runs", "show", "1")
    assert "There is no run 99" in preflab("runs", "show", "99", code=1)


def test_rows_are_named_listed_and_shown_with_what_made_them(project: None, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Why {i}?", "chosen": f"Because {i}.", "rejected": "No."} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    preflab("import", "pairs", str(path), "--set", "name=mine", "--set", "dev_share=0")
    work_off()
    shown = preflab("runs", "show", "1")
    assert shown.startswith("id: 1\nstatus: done\nkind: import_pairs\ntitle: mine\ndone: 3\n"), shown
    made = as_json("list", "verdict_set")
    assert [one["name"] for one in made] == ["mine: imported labels"]  # docs/importing.md names it so
    assert f"- 'verdict set {made[0]['id']}: {made[0]['name']}'" in shown
    assert shown.index("made:") < shown.index("recipe:")
    assert {"noun": "verdict_set", "id": made[0]["id"], "name": made[0]["name"]}.items() <= next(
        one.items() for one in as_json("runs", "show", "1")["made"] if one["noun"] == "verdict_set"
    )
    assert made[0]["name"] in preflab("list", "verdict_set") and "No snapshot yet" in preflab("list", "snapshot")
    assert "invalid choice" in preflab("list", "nonsense", code=2)
    code = "import app.cli; from sqlmodel import SQLModel; print(*SQLModel.metadata.tables)"
    tables = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(PAGES) <= set(tables.split())  # the command by itself knows the table of each noun
    for n, given in enumerate((made[0]["name"], f"@verdict_set:{made[0]['name']}", str(made[0]["id"])), 2):
        run = as_json("runs", "launch", "snapshot", "--set", f"verdict_set={given}")
        assert (run["id"], run["recipe"]["verdict_set"]) == (n, made[0]["id"])
    wrong = preflab("runs", "launch", "snapshot", "--set", "verdict_set=lost", code=1)
    assert "no verdict set called “lost”" in wrong and f"It has: “{made[0]['name']}”." in wrong
    wrong = preflab("runs", "launch", "snapshot", "--set", "verdict_set=@judge:lost", code=1)
    assert "names a judge, but a verdict set belongs here" in wrong
    assert "has none yet" in preflab("runs", "launch", "export", "--set", "checkpoint=base", code=1)


def test_bad_rows_are_told_with_what_to_type(project: None, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Why?"}\n{"prompt": ""}\n{"prompt": "How?"}\n')
    preflab("import", "prompts", str(path))
    work_off()
    assert "--set may_reject=true" in preflab("runs", "show", "1")
    assert as_json("import", "annotations", str(path))["kind"] == "import_annotations"


def test_an_experiment_runs_with_services_of_its_own(
    project: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFLAB_PORT", str(free_port()))
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Why {i}?"}}\n' for i in range(5)))
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: Mine\nvariables: {folder: f}\nsteps:\n"
        '  - {name: first, shared: true, recipe: {kind: import_prompts, path: "{folder}/prompts.jsonl"}}\n'
        "  - {name: second, needs: [first], recipe: {kind: import_prompts, shipped: demo}}\n"
        '  - {name: lost, recipe: {kind: import_prompts, path: "{folder}/absent.jsonl"}}\n'
        "  - {name: last, needs: [lost], recipe: {kind: new_judge, judge_kind: rule}}\n"
    )
    assert "needs the variable folder" in preflab("experiment", "run", str(file), code=1)
    given = ["experiment", "run", str(file), "--set", f"folder={tmp_path}", "--seeds", "7"]
    done = preflab_process(*given, cwd=tmp_path)
    assert done.returncode == 1, done.stderr  # two of four steps cannot be done
    for said in (
        "first: done in",
        "second, seed 7: done in",
        "absent.jsonl",
        "last, seed 7: skipped",
        "failed, 2 of 4",
    ):
        assert said in done.stdout, done.stdout
    shown = as_json("experiment", "show", "1")
    assert [(s["name"], s["status"]) for s in shown["steps"]] == [
        ("first", "done"), ("second", "done"), ("lost", "failed"), ("last", "skipped"),
    ]  # fmt: skip
    assert as_json("experiment", "list")[0]["variables"] == {"folder": str(tmp_path)}
    (tmp_path / "absent.jsonl").write_text('{"prompt": "Found?"}\n')
    assert as_json("experiment", "retry", "1")["status"] == "running"
    assert as_json("experiment", "cancel", "1")["status"] == "cancelled"


def test_the_doctor_names_what_is_wrong(sqlite_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "BAD" not in preflab("doctor")
    assert {row["part"] for row in as_json("doctor")} == {"versions", "disk", "database", "broker", "workers", "gpu"}
    monkeypatch.setenv("PREFLAB_BROKER_URL", f"redis://:secret@127.0.0.1:{free_port()}/0")
    done = preflab_process("doctor")
    assert done.returncode == 1 and "BAD  broker" in done.stdout and "secret" not in done.stdout
    monkeypatch.setenv("PREFLAB_DATABSE_URL", "x")
    assert "PREFLAB_DATABSE_URL: is not known here" in preflab_process("doctor").stderr


@pytest.mark.parametrize("words", [["nonsense"], ["runs"], ["runs", "show", "one"], ["user", "role", "ada", "king"]])
def test_a_wrong_command_line_ends_with_2(sqlite_database: str, words: list[str]) -> None:
    assert "usage: preflab" in preflab(*words, code=2)


def test_every_command_explains_itself() -> None:
    def walk(parser: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = []
        for action in parser._actions:
            if action.nargs == "A..." and action.choices:
                for name, one in action.choices.items():
                    assert one.description, (*path, name)
                    found += [(*path, name), *walk(one, (*path, name))]
        return found

    commands = {" ".join(path) for path in walk(build_parser(), ())}
    wanted = {
        "up", "demo", "experiment run", "import prompts", "import annotations", "list", "runs list",
        "runs show", "runs cancel", "runs resume",
        "checkpoints", "report", "user add", "project add", "token add", "worker", "db upgrade", "doctor",
    }  # fmt: skip
    assert wanted <= commands


def test_recipes_and_settings_can_be_read(sqlite_database: str) -> None:
    assert "kl_coef" in preflab("recipes", "ppo") and "demo_base" in preflab("recipes")
    assert "PREFLAB_PORT" in preflab("settings")


def test_the_configuration_page_is_what_the_settings_say() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == settings_page(), (
        "write it anew: preflab settings --markdown > docs/configuration.md"
    )


@pytest.mark.parametrize(
    ("text", "is_count", "seeds"),
    [("3", True, [1, 2, 3]), ("11,12", True, [11, 12]), ("7,", True, [7]), ("3", False, [3]), ("", False, [])],
)
def test_seeds_on_the_command_line(text: str, is_count: bool, seeds: list[int]) -> None:
    assert read_seed_list(text, is_count=is_count) == seeds


def test_wrong_seeds_and_fields_are_refused() -> None:
    for text in ("x", "0", "101"):
        with pytest.raises(Invalid):
            read_seed_list(text, is_count=True)
    with pytest.raises(Invalid, match="no FIELD=VALUE"):
        read_fields(["lr"])
    assert read_fields(["a.b=1", "a.c=", "d=[x, y]"]) == {"a": {"b": "1", "c": None}, "d": ["x", "y"]}
    for pairs in (["a=1", "a.b=2"], ["a=[!!bool x]"], ['a=[!!timestamp "x"]']):
        with pytest.raises(Invalid):
            read_fields(pairs)


def test_what_cannot_be_stored_or_read_is_said_in_a_line(project: None, tmp_path: Path) -> None:
    assert "cannot be stored" in preflab("user", "add", "\udcff", code=1)  # a byte of the command line that is no UTF-8
    for wrong in ("-1", "0", str(2**70), "x"):
        preflab("runs", "list", "--limit", wrong, code=2)
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: Größe".encode("latin-1"))
    assert "cannot be read as UTF-8" in preflab("experiment", "run", str(file), code=1)


def test_a_terminal_without_unicode_loses_no_json_and_crashes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["recipes", "judge"], ["recipes", "judge", "--json"]):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        assert main(words) == 0
        sys.stdout.flush()
        said = raw.getvalue().decode("ascii")
    assert any("’" in one["what"] for one in json.loads(said))


def test_up_on_an_empty_folder_offers_a_way_in(data_dir: Path) -> None:
    port = free_port()
    env = {**os.environ, "PREFLAB_DATA": str(data_dir), "PREFLAB_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "app.cli", "up"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = next(line.split()[-1] for line in process.stdout if line.startswith("Sign in"))
        with httpx.Client(follow_redirects=True) as visitor:
            assert visitor.get(url).status_code == 200
            assert visitor.post(url).url.path == "/p/lab"
            assert visitor.get(f"http://127.0.0.1:{port}/p/lab/settings").status_code == 200
    finally:
        process.terminate()
        process.wait(30)
