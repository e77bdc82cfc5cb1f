"""The Celery app of the workers: one task, `worker.run`; a ticker thread repairs what the broker lost."""

import logging
import threading
from typing import Any

import sqlalchemy as sa
from celery import signals

from app.config import settings
from app.db import check_schema
from app.errors import AppError
from app.runs.broker import celery
from worker.launch import check_slots
from worker.supervise import Supervisor, tick

log = logging.getLogger(__name__)
app = celery()
_queues = [name.strip() for name in settings().worker_queues.split(",") if name.strip()]
supervisor = Supervisor(_queues)


@app.task(name="worker.run")
def run(run_id: int) -> None:
    """A wake-up: does what is runnable; the id is only a hint."""
    supervisor.run_next()


def _tick_forever() -> None:
    while not supervisor.is_stopping.wait(1.0):
        try:
            tick(supervisor)
        except sa.exc.OperationalError:
            log.warning("the ticker could not reach the database; trying again", exc_info=True)
        except Exception:  # a thread that ends would leave this worker without heartbeat and sweep
            log.exception("a tick failed; going on")


@signals.worker_init.connect
def _start(**_: Any) -> None:
    logging.basicConfig(level=settings().log_level)
    try:
        check_schema()
        check_slots()
    except AppError as error:
        raise SystemExit(error.message) from error  # celery only logs any other exception here, and starts


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    threading.Thread(target=_tick_forever, name="ticker", daemon=True).start()


@signals.worker_shutting_down.connect
def _stop(**_: Any) -> None:
    supervisor.stop()
