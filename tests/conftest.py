"""Fixtures for every test: a data folder of its own, empty migrated databases, real servers, a browser."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from playwright.sync_api import Browser, sync_playwright
from sqlmodel import select
from starlette.testclient import TestClient

from app import db
from app.accounts.logins import COOKIE, make_account, make_login
from app.accounts.models import Account
from app.config import FOREIGN, settings
from app.launcher import Services
from app.projects.models import Project
from app.projects.projects import make_project
from app.runs.broker import celery
from scripts.setup import find_chromium
from tests.demo.seeded import Seeded, read_seeded, run_demo
from tests.servers import free_port, run_postgres, run_redis, skip_or_fail

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """While developing: a folder in which the demo has run before, so that it is not run again."""
    parser.addoption("--demo-data", type=Path, default=None, help="the data folder of a demo that has ended")


def forget_settings() -> None:
    """The next reader of settings or engine sees the environment as it is now."""
    if db.engine.cache_info().currsize:
        db.engine().dispose()
    db.engine.cache_clear()
    celery.cache_clear()  # it would go on asking the broker of an earlier test
    settings.cache_clear()


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty PREFLAB_DATA; no setting of the person who runs the tests reaches them."""
    for name in [name for name in os.environ if name.startswith("PREFLAB_") and name not in FOREIGN]:
        monkeypatch.delenv(name)
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("PREFLAB_DATA", str(folder))
    forget_settings()
    yield folder
    forget_settings()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a real Postgres, without a database's name."""
    with run_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a real redis-server."""
    with run_redis() as url:
        yield url


def migrate(url: str, data: Path) -> None:
    """Brings one database to the newest schema."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFLAB_DATABASE_URL", url)
        patch.setenv("PREFLAB_DATA", str(data))
        forget_settings()
        db.upgrade()
        forget_settings()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("template") / "preflab.db"
    migrate(f"sqlite:///{path}", path.parent)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a migrated Postgres database, to be copied."""
    with psycopg.connect(postgres_server + "postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
    migrate(postgres_server + "migrated", tmp_path_factory.mktemp("postgres"))
    return "migrated"


@pytest.fixture
def sqlite_database(sqlite_template: Path, data_dir: Path) -> str:
    """An empty migrated SQLite database, which the app uses by default; gives its URL."""
    shutil.copy(sqlite_template, data_dir / "preflab.db")
    forget_settings()
    return settings().database


@pytest.fixture
def postgres_database(
    postgres_server: str, postgres_template: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An empty migrated Postgres database that the app uses; gives its URL."""
    name = f"t{uuid4().hex}"
    with psycopg.connect(postgres_server + "postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
        monkeypatch.setenv("PREFLAB_DATABASE_URL", postgres_server + name)
        forget_settings()
        yield settings().database
        forget_settings()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str:
    """An empty migrated database, once on SQLite and once on Postgres; gives its URL."""
    return str(request.getfixturevalue(f"{request.param}_database"))


@pytest.fixture
def project(database: str) -> Project:
    """A project `demo` owned by the account `owner`."""
    with db.transaction() as session:
        return make_project(session, "demo", "Demo", make_account(session, "owner", "correct horse"))


@pytest.fixture
def client(project: Project) -> Iterator[TestClient]:
    """The app's test client, signed in as the owner of `demo`. An exception in a route is raised in the test."""
    with db.transaction() as session:
        owner = session.exec(select(Account).where(Account.name == "owner")).one()
        cookie = make_login(session, owner, "session")
    # imported here, so that a broken page breaks the tests of pages only
    from app.main import create_app

    with TestClient(create_app(), base_url="http://127.0.0.1", cookies={COOKIE: cookie}) as client:
        yield client


@pytest.fixture
def services(sqlite_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """Everything that `preflab up` runs, on a free port and an empty SQLite: for tests in a browser."""
    monkeypatch.setenv("PREFLAB_PORT", str(free_port()))
    forget_settings()
    with Services() as running:
        yield running


@pytest.fixture(scope="session")
def demo_data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seeded:
    """The demo's data: run once for the whole session, or taken from --demo-data. Not to be changed: copy it."""
    given = request.config.getoption("--demo-data")
    return read_seeded(given) if given else run_demo(tmp_path_factory.mktemp("demo") / "data")


@pytest.fixture
def demo_copy(demo_data: Seeded, data_dir: Path) -> Path:
    """The app's data folder is a copy of the demo's, of this test alone."""
    demo_data.copy_to(data_dir)
    forget_settings()
    return data_dir


@pytest.fixture
def demo_services(demo_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """Everything that `preflab up` runs, on a copy of the demo's data."""
    monkeypatch.setenv("PREFLAB_PORT", str(free_port()))
    forget_settings()
    with Services() as running:
        yield running


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; the test is skipped visibly where it is absent."""
    folder = Path(os.environ.get("PREFLAB_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        skip_or_fail("shared_data", f"no real data at {folder} (PREFLAB_SHARED_DATA says where it is)")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real headless Chromium. Make a context of your own from it."""
    path = find_chromium()
    if path is None:
        skip_or_fail("chromium", "no Chromium or Chrome on PATH")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, which CI is.
        chromium = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        yield chromium
        chromium.close()
