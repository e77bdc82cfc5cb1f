"""The lock is whole for every platform, and a set-up step that fails says which one and what to do."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

LOCKS = ("runtime", "dev")


def read_lock(name: str) -> dict[str, str]:
    """Package → exact version."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([^ ]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes_and_no_address(name: str):
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) > 50
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE), "no index, no find-links: they are the machine's affair"


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_pins_neither_torch_nor_cuda(name: str):
    heavy = [package for package in read_lock(name) if re.match(r"torch$|nvidia|cuda|triton", package)]
    assert heavy == []


def test_the_lock_meets_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {"runtime": project["project"]["dependencies"], "dev": project["dependency-groups"]["dev"]}
    for name, requirements in wanted.items():
        locked = read_lock(name)
        for requirement in map(Requirement, requirements):
            if requirement.name != "torch":
                version = locked[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(version), f"{requirement} but {version} is locked: make lock"


def test_tests_run_on_the_versions_that_users_get():
    runtime, dev = read_lock("runtime"), read_lock("dev")
    assert {package: dev.get(package) for package in runtime} == runtime


def run_setup(folder: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """scripts/setup.py in a copy of the repository's set-up files."""
    (folder / "scripts").mkdir()
    (folder / "requirements").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.py", folder / "scripts")
    (folder / "requirements" / "runtime.lock").write_text(f"nosuchpackage==1.0 --hash=sha256:{'0' * 64}\n")
    command = [sys.executable, str(folder / "scripts" / "setup.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environ)


def test_a_failed_step_is_named_with_what_to_do_and_leaves_no_stamp(tmp_path: Path):
    done = run_setup(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1
    assert "set-up: make .venv" in done.stdout
    assert "set-up failed at the step: install packages from requirements/runtime.lock" in done.stderr
    assert "nosuchpackage" in done.stderr
    assert "What to do: check the network and the free disk space" in done.stderr
    assert not (tmp_path / ".venv" / "runtime.stamp").exists()
