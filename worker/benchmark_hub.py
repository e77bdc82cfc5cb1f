"""Benchmarks on the Hugging Face hub: the commit of each data set that is read, one for all arms of a project.

A benchmark's settings hold the commits, so that scores of different commits are different versions and are never
compared. The library `datasets` falls back on whatever its cache holds where the hub cannot be asked; what it has
loaded is therefore held to the commit.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlmodel import col, select

from app.benchmarks.models import Benchmark
from app.errors import Invalid
from worker.hub import explain
from worker.job import Job

Commits = Mapping[str, str]  # repository → commit


def pin_commits(job: Job, benchmark: str, repos: Sequence[str]) -> Commits:
    """The commits to read: those of this run's earlier attempt, else those the project has read before, else the
    newest, as they are where the recipe asks for them anew. Raises Invalid with what the hub says."""
    note = job.folder / "hub-commits.json"
    if note.exists():
        found: dict[str, str] = json.loads(note.read_text(encoding="utf-8"))
        return found
    before = {} if job.recipe.is_data_renewed else _read_before(job, benchmark)
    commits = {repo: before.get(repo) or _newest(repo) for repo in repos}
    note.write_text(json.dumps(commits), encoding="utf-8")
    for repo, commit in commits.items():
        job.log(f"{repo} at commit {commit}" + (", as this project has read it before" if repo in before else ""))
    return commits


def as_settings(commits: Commits) -> dict[str, list[str]]:
    """What a benchmark's settings say of them; nothing of local files."""
    return {"hub": [f"{repo}@{commit}" for repo, commit in commits.items()]} if commits else {}


def check_commits(commits: Commits, loaded: Mapping[str, Any]) -> None:
    """Raises Invalid where a data set was loaded from another commit than it is pinned to."""
    for repo, dataset in loaded.items():
        splits = dataset.values() if isinstance(dataset, dict) else [dataset]
        places = [file["filename"] for split in splits for file in split.cache_files]
        if not places or any(f"/{commits[repo]}/" not in place.replace("\\", "/") for place in places):
            message = (
                f"{repo} could not be read at commit {commits[repo]}, only another one from the worker's cache: let "
                "the worker reach the hub, or download that commit elsewhere and give its files."
            )
            raise Invalid(message, {"data": [message]})


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """What the hub and its libraries raise, as an error that says what to do."""
    import httpx2
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    try:
        yield
    except (DatasetsError, HfHubHTTPError, RevisionResolutionError, httpx2.HTTPError, ConnectionError) as error:
        message = explain(error, repo, "dataset")
        raise Invalid(message, {"data": [message]}) from error


def _read_before(job: Job, benchmark: str) -> dict[str, str]:
    with job.read() as session:
        mine = select(Benchmark.settings).where(Benchmark.project_id == job.project_id, Benchmark.name == benchmark)
        for settings in session.exec(mine.order_by(col(Benchmark.version).desc())):
            if settings.get("hub"):
                return dict(one.rsplit("@", 1) for one in settings["hub"])
    return {}


def _newest(repo: str) -> str:
    from huggingface_hub import HfApi

    with explained(repo):
        return str(HfApi().resolve_revision(repo, repo_type="dataset").resolved)
