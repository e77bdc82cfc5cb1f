"""Every table, imported in one place so that the metadata is whole (migrations, tests, start-up)."""

from sqlmodel import SQLModel

import app.accounts.models
import app.annotations.models
import app.benchmarks.models
import app.checkpoints.models
import app.constitutions.models
import app.experiments.models
import app.grading.models
import app.judging.models
import app.pairs.models
import app.projects.models
import app.prompts.models
import app.review.models
import app.revising.models
import app.runs.models
import app.training.models  # noqa: F401

metadata = SQLModel.metadata
