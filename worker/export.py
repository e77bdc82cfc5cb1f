"""Export of a checkpoint: an adapter as it is, or everything merged into one set of safetensors; with a model card.

The folder loads with transformers or peft alone, but for a bi-encoder's. Pushing it to the Hugging Face hub is the last
step, and only where a hub id is asked for; huggingface_hub reads the token from the worker’s own environment, never
from a recipe.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from sqlmodel import Session, col, func, select

from app.benchmarks.models import Benchmark, Score
from app.checkpoints.models import Arm, Checkpoint
from app.checkpoints.recipes import ExportRecipe
from app.config import settings
from app.db import get
from app.errors import AppError
from app.runs.models import Run
from app.training.models import Snapshot
from worker.checkpoints import weights_of
from worker.importing_adapter import BASE_WEIGHTS, weight_hashes
from worker.job import Job
from worker.loading import check_whole, load_full, load_tokenizer
from worker.saving import MANIFEST, save_folder

MOST_SCORES = 40


def export_checkpoint(job: Job) -> None:
    """Writes the folder the run's page offers for download, and pushes it where asked."""
    recipe: ExportRecipe = job.recipe
    with job.read() as session:
        row = get(session, Checkpoint, recipe.checkpoint)
        weights = weights_of(session, row.id)
        card = write_card(session, row, recipe)
    job.progress(0, 2, "writing weights")

    def write(folder: Path) -> None:
        if recipe.form == "merged":
            load_full(weights).save_pretrained(folder)
        else:
            _copy(weights.folder, folder)
            check_whole(weights)
        load_tokenizer(weights).save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")

    target = settings().folder("exports") / f"run-{job.run_id}"
    known: dict[str, Any] = {"exported": row.name, "form": recipe.form}
    if recipe.form != "merged" and weights.base is not None:
        known[BASE_WEIGHTS] = weight_hashes(weights.root)  # an import sees whether it is put on the same base
    save_folder(target, write, known)
    job.log(f"written to {target.relative_to(settings().data_path)}")
    job.progress(1, 2, "written")
    if recipe.push_to:
        job.log(f"pushed: {push(target, recipe.push_to, is_private=recipe.is_private)}")
    job.progress(2, 2)


def _copy(source: Path, folder: Path) -> None:
    """The checkpoint's own files, byte for byte; its manifest stays behind, the export gets one of its own."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in {MANIFEST, "README.md"}:
            (folder / path.name).write_bytes(path.read_bytes())


def push(folder: Path, repo_id: str, *, is_private: bool) -> str:
    """Uploads a folder to the hub; returns its address. Raises AppError with what to do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repo_id, private=is_private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message="PrefLab export"))
    except (OSError, HfHubHTTPError) as error:  # no network, no token, no right to write there
        raise AppError(
            f"The folder is written, but pushing to “{repo_id}” failed: {str(error).splitlines()[0][:300]}. "
            "Set HF_TOKEN in the worker's environment to a token that may write there, then run it again."
        ) from error


def write_card(session: Session, row: Checkpoint, recipe: ExportRecipe) -> str:
    """The model card: what it is, how it was made, on what labels, what it scored, and what was not checked."""
    base: Checkpoint | None = row
    while base is not None and base.parent_id is not None:
        base = session.get(Checkpoint, base.parent_id)
    is_bi_encoder = str(row.facts.get("architecture", "")).startswith("bi-encoder")
    is_adapter = recipe.form != "merged" and row.weights == "adapter"
    library = "preflab" if is_bi_encoder else "peft" if is_adapter else "transformers"
    head: dict[str, Any] = {"library_name": library, "tags": ["preflab"]}
    if recipe.licence:
        head["license"] = recipe.licence
    if base is not None and base.source and base.id != row.id:
        head["base_model"] = base.source
    lines = [f"---\n{yaml.safe_dump(head, sort_keys=True).strip()}\n---", f"# {row.name}", ""]
    kind = "reward model" if row.role == "reward" else "policy"
    lines += [f"A {kind} made by PrefLab, method `{row.method}`, seed {row.seed}, step {row.step}, "
              f"exported {'merged' if recipe.form == 'merged' else 'as it is'}.", ""]  # fmt: skip
    if is_bi_encoder:
        lines += _say_bi_encoder(row)
    if is_adapter:
        on = get(session, Checkpoint, row.base_id or 0)
        lines += [f"It is an adapter: it needs its base, “{on.name}”{f' ({on.source})' if on.source else ''}, manifest "
                  f"sha256 `{on.manifest_sha256}`.", ""]  # fmt: skip
    run = session.get(Run, row.run_id) if row.run_id else None
    if run is not None:
        lines += _how(session, run)
    lines += _scored(session, row)
    lines += ["## Not checked", "", "Nothing here says that the model is safe or true beyond the figures above.", ""]
    return "\n".join(lines)


def _say_bi_encoder(row: Checkpoint) -> list[str]:
    """What it is, by its equation and files, for who has never seen one; and how PrefLab reads it again."""
    architecture = str(row.facts["architecture"])
    weights = "adapter_model.safetensors" if row.weights == "adapter" else "model.safetensors"
    base = " --set base=ID_OF_ITS_BASE" if row.weights == "adapter" else ""
    return [
        f"A {architecture}.", "",
        "One tower reads the prompt, the other the completion with its end token; neither sees the other’s text. With "
        "h a tower’s last hidden states, u = W_p·mean(h of the prompt) and v = W_c·mean(h of the completion), each "
        "mean over the text’s own tokens, d the width of u and v; a higher score means preferred.", "",
        f"`bi_encoder.json` says how the towers meet, `{weights}` holds the trained tensors, beside the tokenizer. "
        "transformers has no class for it: `worker/bi_encoder.py` of PrefLab has its equations and loads it. Into "
        f"PrefLab: `preflab import checkpoint FOLDER --set role=reward{base}`.", "",
    ]  # fmt: skip


def _how(session: Session, run: Run) -> list[str]:
    lines = ["## How it was made", "", f"PrefLab {run.code_version}, run {run.id}. The recipe:", "", "```json",
             json.dumps(run.recipe, indent=1, ensure_ascii=False), "```", ""]  # fmt: skip
    snapshot = session.get(Snapshot, int(run.recipe["snapshot"])) if run.recipe.get("snapshot") else None
    if snapshot is not None:
        n_people = snapshot.counts.get("overridden", 0)
        lines += [
            f"Preferences: “{snapshot.name}”, {snapshot.n_train:,} to train on, {snapshot.n_dev:,} held out, sha256 "
            f"`{snapshot.sha256}`; {n_people:,} labels from people.{_left_out(run)}", "",
        ]  # fmt: skip
        if snapshot.waiver:
            lines += [f"Its judge failed its card; the labels were used all the same because: {snapshot.waiver}", ""]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(run.packages.items()))
    return [*lines, f"Packages: {packages or 'not recorded'}.", ""]


def _left_out(run: Run) -> str:
    """How many of those rows were too long to be trained on."""
    train, dev = int(run.cost.get("left_out_rows", 0)), int(run.cost.get("left_out_dev_rows", 0))
    if not train and not dev:
        return ""
    limit = int(run.cost["row_limit"])
    return f" Left out, as longer than {limit:,} tokens: {train:,} rows to train on and {dev:,} held out."


def _scored(session: Session, row: Checkpoint) -> list[str]:
    """Means of what its arms scored, with n."""
    query = (
        select(Benchmark.name, Score.metric, func.avg(Score.value), func.count())
        .join(Benchmark, col(Benchmark.id) == col(Score.benchmark_id))
        .join(Arm, col(Arm.id) == col(Score.arm_id))
        .where(Arm.checkpoint_id == row.id, col(Score.value).is_not(None))
        .group_by(col(Benchmark.name), col(Score.metric)).order_by(col(Benchmark.name), col(Score.metric))
    )  # fmt: skip
    found = session.exec(query.limit(MOST_SCORES)).all()
    if not found:
        return ["## Scores", "", "None were measured.", ""]
    table = [f"| {name} | {metric} | {value:.3f} | {n:,} |" for name, metric, value, n in found]
    return ["## Scores", "", "| benchmark | metric | mean | n |", "|---|---|---|---|", *table, ""]
