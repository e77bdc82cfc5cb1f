"""Pages and API of training: methods and their runs, snapshots, a run's panel, the forecast, training again."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select
from starlette.datastructures import FormData, UploadFile

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import Db, get
from app.errors import NotFound
from app.html import html, read_form
from app.judging.models import VerdictSet
from app.projects.access import Member, Researcher, Viewer
from app.runs.models import Run
from app.runs.routes import project_run, run_as_json
from app.tables import FORMATS, Format, respond
from app.training.before import read_duration, read_forecast
from app.training.diff import comparable
from app.training.judge_calls import say_judge_calls
from app.training.lengths import say_fit
from app.training.models import Snapshot
from app.training.pages import (
    METHODS,
    preview,
    read_panel,
    read_warnings,
    readers_of,
    runs_table,
    snapshots_table,
)
from app.training.stale import OFFLINE, count_changed_labels, refreeze, retrain, stale_rows

router = APIRouter()

ABOUT = {
    "sft": (
        "SFT",
        "Copies the preferred completions, or what a stronger arm wrote. Cheap, and often most of the effect.",
    ),
    "reward": ("Reward model", "Learns to score completions as the preferences do. It can reward PPO, GRPO and RLOO."),
    "dpo": ("DPO", "Learns from the pairs themselves, against a reference; needs no reward model."),
    "simpo": ("SimPO", "As DPO without a reference: log-probability per token, and a lead that chosen is to have."),
    "kto": ("KTO", "Takes completions as good or bad by themselves; pairs are taken apart."),
    "ppo": (
        "PPO",
        "Samples, is rewarded by a reward model, a judge or the rule, and held by a KL penalty. The most tokens.",
    ),
    "grpo": ("GRPO", "As PPO without a value model: completions of one prompt are compared with each other."),
    "rloo": ("RLOO", "As GRPO, each completion measured against the mean of the others; plain policy gradient."),
}


@router.get("/p/{project}/train")
def show_training(request: Request, member: Viewer, session: Db) -> Response:
    """Methods, training runs with their headline, and snapshots; what is stale says so."""
    snapshots = session.exec(
        select(Snapshot)
        .options(defer(Snapshot.counts))  # type: ignore[arg-type]  # long where much is overridden
        .where(Snapshot.project_id == member.project.id)
        .order_by(col(Snapshot.id).desc())
        .limit(10)
    ).all()
    return respond(
        request, session, runs_table(member), "html", "training/list.html", title="Train", methods=ABOUT,
        snapshots=snapshots, stale=stale_rows(session, member.project.id), offline=OFFLINE,
    )  # fmt: skip


@router.get("/p/{project}/train/snapshots")
def list_snapshots(request: Request, member: Viewer, session: Db) -> Response:
    """Every frozen file of preferences."""
    table = snapshots_table(member)
    return respond(request, session, table, "html", "training/snapshots.html", title="Snapshots")


def _downloads(fmt: Format) -> None:
    @router.get(f"/p/{{project}}/train.{fmt}", name=f"download_training_runs_{fmt}")
    def download_runs(request: Request, member: Viewer, session: Db) -> Response:
        return respond(request, session, runs_table(member), fmt, "training/list.html")

    @router.get(f"/p/{{project}}/train/snapshots.{fmt}", name=f"download_snapshots_{fmt}")
    def download_snapshots(request: Request, member: Viewer, session: Db) -> Response:
        return respond(request, session, snapshots_table(member), fmt, "training/snapshots.html")


for _fmt in FORMATS:
    _downloads(_fmt)  # type: ignore[arg-type]


def project_snapshot(session: Session, member: Member, snapshot_id: int) -> Snapshot:
    """A snapshot of this project; raises NotFound."""
    snapshot = get(session, Snapshot, snapshot_id)
    if snapshot.project_id != member.project.id:
        raise NotFound(f"There is no snapshot {snapshot_id}.")
    return snapshot


@router.get("/p/{project}/train/snapshots/{snapshot_id}")
def show_snapshot(
    request: Request, member: Viewer, session: Db, snapshot_id: int, by: Literal["people", ""] = ""
) -> Response:
    """One frozen file: what went in, what was left out and why, its first rows, and whether it is stale."""
    snapshot = project_snapshot(session, member, snapshot_id)
    return html(
        request, "training/snapshot.html", title=snapshot.name, snapshot=snapshot,
        rows=preview(snapshot, by_people=by == "people"), is_by_people=by == "people",
        n_changed=count_changed_labels(session, snapshot), runs=readers_of(session, snapshot), methods=ABOUT,
        verdict_set=get(session, VerdictSet, snapshot.verdict_set_id), offline=OFFLINE,
        freezing=get(session, Run, snapshot.run_id) if snapshot.run_id else None,
        others=comparable(session, snapshot) if snapshot.state == "ready" else [],
    )  # fmt: skip


@router.get("/p/{project}/train/snapshots/{snapshot_id}/preferences.jsonl")
def download_preferences(member: Viewer, session: Db, snapshot_id: int) -> Response:
    """The frozen file itself: prompt, chosen and rejected as messages, as TRL reads them and the import takes them."""
    snapshot = project_snapshot(session, member, snapshot_id)
    path = settings().data_path / snapshot.path
    if snapshot.state != "ready" or not path.is_file():
        what = "is still being written" if snapshot.state != "ready" else "is gone: freeze these verdicts again"
        raise NotFound(f"The file of “{snapshot.name}” {what}.")
    return FileResponse(path, media_type="application/x-ndjson", filename=f"preferences-{snapshot.id}.jsonl")


@router.get("/p/{project}/train/checkpoints/{checkpoint_id}/stale")
def show_checkpoint_stale(request: Request, member: Viewer, session: Db, checkpoint_id: int) -> Response:
    """The mark on a checkpoint's page when labels behind it have changed; nothing otherwise."""
    checkpoint = get(session, Checkpoint, checkpoint_id)
    if checkpoint.project_id != member.project.id:
        raise NotFound(f"There is no checkpoint {checkpoint_id}.")
    n_changed = stale_rows(session, member.project.id)["checkpoint"].get(checkpoint.id, 0)
    run = get(session, Run, checkpoint.run_id) if checkpoint.run_id else None
    return html(
        request, "training/_stale_mark.html", run=run, n_changed=n_changed, is_offline=run and run.kind in OFFLINE
    )


@router.post("/p/{project}/train/snapshots/{snapshot_id}/again")
def freeze_again(member: Researcher, session: Db, snapshot_id: int) -> Response:
    """Freezes the same verdicts with the labels as they stand now."""
    row, _ = refreeze(session, project_snapshot(session, member, snapshot_id), member.account.id)
    return RedirectResponse(f"/p/{member.project.slug}/train/snapshots/{row.id}", status_code=303)


@router.post("/p/{project}/train/runs/{run_id}/again")
def train_again(member: Researcher, session: Db, run_id: int) -> Response:
    """Trains the same way on the labels as they stand now."""
    run = retrain(session, project_run(session, member, run_id), member.account.id)
    return RedirectResponse(f"/p/{member.project.slug}/runs/{run.id}", status_code=303)


@router.post("/api/v1/p/{project}/train/runs/{run_id}/again")
def train_again_api(member: Researcher, session: Db, run_id: int) -> dict[str, Any]:
    """Trains the same way on the labels as they stand now."""
    return run_as_json(retrain(session, project_run(session, member, run_id), member.account.id))


def _per_kind(kind: str) -> None:
    @router.get(f"/p/{{project}}/runs/{{run_id}}/panel/{kind}", name=f"show_{kind}_panel")
    def show_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
        run = project_run(session, member, run_id)
        if run.kind != kind:
            raise NotFound(f"Run {run_id} is no {kind} run.")
        n_changed = stale_rows(session, member.project.id)["run"].get(run.id, 0)
        panel = read_panel(session, run)
        is_offline = kind in OFFLINE
        return html(
            request, "training/_panel.html", run=run, n_changed=n_changed, is_offline=is_offline, **panel
        )  # fmt: skip

    @router.get(f"/p/{{project}}/forecast/{kind}", name=f"forecast_{kind}")
    def show_forecast(request: Request, member: Viewer, session: Db) -> Response:
        given: list[tuple[str, str | UploadFile]] = [*request.query_params.multi_items()]
        values = read_form(METHODS[kind], FormData(given))
        forecast = read_forecast(session, member, kind, values)
        duration = read_duration(session, member, kind, values)
        warnings = [*read_warnings(session, member, values), *say_judge_calls(METHODS[kind], values)]
        warnings += say_fit(session, member, kind, values)
        return html(
            request, "training/_forecast.html", forecast=forecast, duration=duration, warnings=warnings
        )  # fmt: skip


for _kind in METHODS:
    _per_kind(_kind)
