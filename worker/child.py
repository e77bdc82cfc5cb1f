"""One run in a process of its own: `python -m worker.child RUN ATTEMPT`. EOF on stdin tells it that its parent died."""

import contextlib
import importlib
import os
import resource
import sys
import threading
import time
import traceback

import sqlalchemy as sa

from app.config import settings
from app.db import transaction
from app.errors import AppError
from app.runs.queue import Fenced, finish
from worker.failures import remedy_for
from worker.job import Cancelled, Job
from worker.several import Follower, Released, is_of_another, rank, take_own_gpu

FIRST_SPEAKS_S = 5.0  # the first process says what went wrong before the launcher ends it because another one failed
OTHERS_END_US_S = 30.0

KINDS = {
    "import_prompts": "worker.importing:import_prompts",
    "import_pairs": "worker.importing_pairs:import_pairs",
    "import_annotations": "worker.importing_annotations:import_annotations",
    "peek_hub": "worker.hub:peek_hub",
    "check_prompts": "worker.hygiene:check_prompts",
    "import_checkpoint": "worker.importing_checkpoint:import_checkpoint",
    "export": "worker.export:export_checkpoint",
    "new_endpoint": "worker.judge:add_endpoint",
    "new_judge": "worker.judge:add_judge",
    "demo_base": "worker.demo_base:make_demo_base",
    "generate": "worker.generate:generate_pairs",
    "judge": "worker.judge:judge_pairs",
    "rate": "worker.rate:rate_completions",
    "audit": "worker.audit:draw_queue",
    "card": "worker.card:make_card",
    "red_team": "worker.red_team:make_red_team",
    "revise": "worker.revise:revise_completions",
    "hand_over": "worker.hand_over:hand_over",
    "best_of": "worker.hand_over:keep_best",
    "in_context": "worker.in_context:make_in_context",
    "snapshot": "worker.snapshot:freeze_snapshot",
    "sft": "worker.sft:train_sft",
    "reward": "worker.reward:train_reward",
    "dpo": "worker.dpo:train_dpo",
    "simpo": "worker.dpo:train_simpo",
    "kto": "worker.kto:train_kto",
    "ppo": "worker.ppo:train_ppo",
    "grpo": "worker.grpo:train_grpo",
    "rloo": "worker.grpo:train_grpo",
    "measure": "worker.measure:measure",
    "benchmark": "worker.benchmark:run_benchmark",
    "grading": "worker.grading:prepare_grading",
    "play": "worker.play:play",
}


def die_with_parent() -> None:
    """Ends this process when stdin closes, which is when the supervisor is gone."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(70)


def do(job: Job) -> None:
    """Calls the function of the run's kind."""
    take_own_gpu()
    module, _, name = KINDS[job.recipe.kind].partition(":")
    getattr(importlib.import_module(module), name)(job)


def follow(run_id: int, attempt: int) -> int:
    """Trains along with the first process; returns this one's exit code. What went wrong here alone is said here."""
    try:
        do(Follower(run_id, attempt))
    except (Released, Cancelled):
        return 0
    except Exception as broken:  # noqa: BLE001  as in work(): whatever broke is shown on the run's page
        traceback.print_exc()
        sys.stderr.flush()
        time.sleep(FIRST_SPEAKS_S)
        if not is_of_another(broken) and not isinstance(broken, sa.exc.OperationalError):
            error = broken.message if isinstance(broken, AppError) else remedy_for(broken) or traceback.format_exc()
            with contextlib.suppress(Fenced), transaction() as session:  # unless the first has said it
                finish(session, run_id, attempt, "failed", f"Process {rank()}: {error}")
    return 1


def read_peaks() -> dict[str, float]:
    """The most memory this process has held, and on its GPU where it used one, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss: bytes there, KiB elsewhere
    peaks = {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peaks["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return peaks


def work(run_id: int, attempt: int) -> str:
    """Does one attempt and ends it in the database; returns the status it ended with."""
    started = time.process_time(), time.monotonic()
    status, error = "done", None
    job = None
    try:
        job = Job(run_id, attempt)
        job.check()
        do(job)
    except Cancelled as stopped:
        status, error = "cancelled", str(stopped) or None  # a pause says why
    except AppError as known:
        status, error = "failed", known.message
    except Fenced:
        return "fenced"
    except sa.exc.OperationalError:
        raise  # the database was away: another attempt goes on from what is stored
    except Exception as broken:  # noqa: BLE001  the one catch-all: whatever broke is shown on the run's page
        if is_of_another(broken):
            time.sleep(OTHERS_END_US_S)  # the launcher ends this process, or the other one says what went wrong
        status, error = "failed", remedy_for(broken) or traceback.format_exc()
    spent = {"cpu_seconds": time.process_time() - started[0], "wall_seconds": time.monotonic() - started[1]}
    try:
        if job:
            job.spend(**spent)
            job.hold(**read_peaks())
        with transaction() as session:
            finish(session, run_id, attempt, status, error)
    except Fenced:
        return "fenced"
    return status


def main() -> None:
    """Entry point."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # One thread: far faster for tiny models, and the same seed gives the same numbers. The environment may say more.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    threading.Thread(target=die_with_parent, daemon=True).start()
    settings()
    run_id, attempt = int(sys.argv[1]), int(sys.argv[2])
    if rank() > 0:
        os._exit(follow(run_id, attempt))
    print(f"run {run_id} attempt {attempt}: {work(run_id, attempt)}", flush=True)
    sys.stdout.flush()
    os._exit(0)  # no waiting for library threads


if __name__ == "__main__":
    main()
