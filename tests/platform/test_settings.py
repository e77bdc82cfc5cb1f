"""Every setting is listed, checked at start, and named when it is wrong."""

import re
from pathlib import Path

import pytest

from app.config import FOREIGN, Settings, read_settings
from app.errors import AppError
from tests.conftest import ROOT


def test_env_example_lists_every_setting_with_its_default_and_nothing_else():
    lines = (ROOT / ".env.example").read_text().splitlines()
    listed = {
        match[1]: (match[2], lines[i - 1].removeprefix("# "))
        for i, line in enumerate(lines)
        if (match := re.fullmatch(r"# (PREFLAB_\w+)=(.*)", line))
    }
    for name in FOREIGN:
        del listed[name]
    wanted = {}
    for name, field in Settings.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        wanted[f"PREFLAB_{name.upper()}"] = (default, field.description)
    assert listed == wanted


def test_docs_list_every_setting():
    text = (ROOT / "docs" / "configuration.md").read_text()
    missing = [name for name in Settings.model_fields if f"PREFLAB_{name.upper()}" not in text]
    assert missing == []


def test_the_example_itself_is_accepted():
    pairs = re.findall(r"^# (PREFLAB_\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert read_settings(dict(pairs)) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("PREFLAB_PORT", "eighty", "must be a whole number"),
        ("PREFLAB_PORT", "70000", "must be at most 65535"),
        ("PREFLAB_DATABASE_URL", "mysql://x/y", "use sqlite:///path or postgresql://"),
        ("PREFLAB_BROKER_URL", "localhost:6379", "use redis://"),
        ("PREFLAB_LOG_LEVEL", "chatty", "choose DEBUG, INFO, WARNING or ERROR"),
        ("PREFLAB_PROT", "8124", "is not known here"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name: str, value: str, remedy: str):
    with pytest.raises(AppError, match=rf"{name}: .*{re.escape(remedy)}"):
        read_settings({name: value})


def test_the_short_postgres_url_chooses_the_installed_driver():
    for given in ("postgres://u:p@h/d", "postgresql://u:p@h/d"):
        assert read_settings({"PREFLAB_DATABASE_URL": given}).database == "postgresql+psycopg://u:p@h/d"


def test_the_running_broker_is_found_beside_the_data(data_dir: Path):
    settings = read_settings({"PREFLAB_DATA": str(data_dir)})
    assert settings.broker == ""
    (data_dir / "broker.url").write_text("redis+socket:///tmp/x/b.sock?virtual_host=0\n")
    assert settings.broker == "redis+socket:///tmp/x/b.sock?virtual_host=0"
    given = read_settings({"PREFLAB_DATA": str(data_dir), "PREFLAB_BROKER_URL": "redis://h/0"})
    assert given.broker == "redis://h/0"


def test_an_address_of_ipv6_is_written_with_brackets_and_wide_hosts_are_refused():
    assert read_settings({"PREFLAB_HOST": "::1", "PREFLAB_PORT": "9"}).url == "http://[::1]:9"
    with pytest.raises(AppError, match="PREFLAB_ALLOWED_HOSTS"):
        read_settings({"PREFLAB_ALLOWED_HOSTS": "lab.example.org,a*"})
