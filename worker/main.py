"""The Celery app of the workers: one task, `worker.run`; a ticker thread repairs what the broker lost."""

import logging
import threading
from typing import Any

import sqlalchemy as sa
from celery import signals

from app.config import settings
from app.db import check_schema
from app.runs.broker import celery
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
        except sa.exc.SQLAlchemyError:
            log.warning("the ticker could not reach the database; trying again", exc_info=True)


@signals.worker_init.connect
def _start(**_: Any) -> None:
    check_schema()
    logging.basicConfig(level=settings().log_level)


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    threading.Thread(target=_tick_forever, name="ticker", daemon=True).start()


@signals.worker_shutting_down.connect
def _stop(**_: Any) -> None:
    supervisor.stop()
