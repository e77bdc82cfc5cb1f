"""Tables: checkpoints, endpoints, and the arms that are compared."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from app.db import Row, json_field, long_text, moment, one_of, ref

METHODS = ("imported", "base", "sft", "reward", "dpo", "simpo", "kto", "ppo", "grpo", "rloo")


class Checkpoint(Row, table=True):
    """Weights: a Hugging Face id, a local directory, or something a run made."""

    __table_args__ = (sa.UniqueConstraint("run_id", "step", "role"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    role: str = one_of("role", "policy", "reward", default="policy")
    weights: str = one_of("weights", "full", "adapter", default="full")
    method: str = one_of("method", *METHODS)
    base_id: int | None = ref("checkpoint.id", nullable=True)  # what an adapter sits on
    parent_id: int | None = ref("checkpoint.id", nullable=True)  # what training started from
    run_id: int | None = ref("run.id", nullable=True, index=False)
    step: int = 0
    source: str = Field(default="", max_length=500)  # hub id or the path the user gave
    revision: str = Field(default="", max_length=80)
    path: str = Field(default="", max_length=1000)  # relative to the data folder when a run made it
    manifest_sha256: str = Field(default="", max_length=64)
    n_parameters: int = Field(default=0, sa_type=sa.BigInteger)
    seed: int = 0
    facts: dict[str, Any] = json_field(factory=dict)  # context length, chat template, held-out accuracy
    created_at: datetime = moment(is_now=True)
    archived_at: datetime | None = moment(nullable=True)


class Endpoint(Row, table=True):
    """An OpenAI-compatible server. The key is encrypted and bound to the origin."""

    __table_args__ = (sa.UniqueConstraint("project_id", "name"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    origin: str = Field(max_length=300)  # scheme://host:port/v1
    model: str = Field(max_length=200)
    key_ciphertext: str | None = long_text(nullable=True)
    key_last4: str = Field(default="", max_length=4)
    usd_per_million_in: float = 0
    usd_per_million_out: float = 0
    requests_per_minute: int | None = None  # calls beyond these wait
    tokens_per_minute: int | None = None
    extra_body: dict[str, Any] = json_field(factory=dict)  # sent along with every request
    mode: dict[str, Any] = json_field(factory=dict)  # what "test connection" found: structured, logprobs, n, …
    created_at: datetime = moment(is_now=True)
    archived_at: datetime | None = moment(nullable=True)


class Arm(Row, table=True):
    """What gets compared: where completions come from, the prefix, and how they are decoded."""

    __table_args__ = (sa.UniqueConstraint("project_id", "sha256"),)
    project_id: int = ref("project.id")
    name: str = Field(max_length=120)
    kind: str = one_of("kind", "checkpoint", "endpoint", "imported")
    method: str = Field(default="imported", max_length=24)  # its colour on every page
    checkpoint_id: int | None = ref("checkpoint.id", nullable=True)
    endpoint_id: int | None = ref("endpoint.id", nullable=True)
    preamble: list[dict[str, str]] = json_field(factory=list)  # system or few-shot messages put before the prompt
    decoding: dict[str, Any] = json_field(factory=dict)  # temperature, top_p, max_new_tokens
    seed: int = 0
    sha256: str = Field(max_length=64)
    created_at: datetime = moment(is_now=True)
