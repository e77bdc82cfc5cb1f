"""The Celery app as the web and the ticker use it: to send one run's id, nothing else."""

from functools import cache

from celery import Celery

from app.config import settings
from app.errors import Unavailable


@cache
def celery() -> Celery:
    """The Celery app; JSON only, no result backend. Raises Unavailable without a broker."""
    url = settings().broker
    if not url:
        raise Unavailable("No broker: start with `preflab up`, which brings one along, or set PREFLAB_BROKER_URL.")
    app = Celery("preflab", broker=url)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=1,
        # who launches a run waits for this: the ticker repairs what a broker that is away did not hear
        broker_transport_options={"socket_connect_timeout": 1, "max_retries": 1, "interval_start": 0.2},
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        timezone="UTC",
    )
    return app
