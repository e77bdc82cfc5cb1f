"""Celery workers: generation, judging, training, benchmarks. May import the app's models and plain functions."""

import app.models  # noqa: F401  every table is known before the first row
