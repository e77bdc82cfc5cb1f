"""Moves experiments on: launches steps whose needs are done, and ends the experiment when all steps have."""


def advance_all() -> None:
    """One pass over every running experiment."""
