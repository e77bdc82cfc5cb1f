"""Celery workers: generation, judging, training, benchmarks. May import the app's models and plain functions."""
