"""Recipes that bring a checkpoint or an endpoint into the project."""

from typing import ClassVar, Literal

from pydantic import Field
from sqlmodel import Session

from app.checkpoints.fields import ExtraBody, RequestsPerMinute, TokensPerMinute
from app.checkpoints.models import Checkpoint
from app.errors import Invalid
from app.runs.recipe import Recipe, points_to


class ImportCheckpointRecipe(Recipe):
    """A Hugging Face id or a local directory; safetensors only, no remote code."""

    kind: ClassVar[str] = "import_checkpoint"
    aim: ClassVar[str] = "Import a checkpoint"
    verb: ClassVar[str] = "Import"

    source: str = Field(..., min_length=1, max_length=500, title="Hugging Face id or directory on the server")
    revision: str = Field("", max_length=80, title="Revision", description="For a Hugging Face id; empty means main.")
    role: Literal["policy", "reward"] = Field("policy", title="Role")
    base: int | None = points_to(
        "checkpoint", title="Base of an adapter", default=None, where={"role": "policy"},
        description="For LoRA weights: the full checkpoint they were trained on. Empty for full weights.",
    )  # fmt: skip

    def check(self, session: Session, project_id: int) -> None:
        """Raises Invalid for a base that is itself an adapter."""
        row = session.get(Checkpoint, self.base) if self.base is not None else None
        if row is not None and row.weights != "full":
            message = f"“{row.name}” is an adapter itself: choose the full weights under it."
            raise Invalid(message, {"base": [message]})


class NewEndpointRecipe(Recipe):
    """An OpenAI-compatible server that needs no key (one with a key is made on its own page)."""

    kind: ClassVar[str] = "new_endpoint"
    aim: ClassVar[str] = "Add an endpoint"
    verb: ClassVar[str] = "Add"

    origin: str = Field(
        ..., min_length=8, max_length=300, title="Base URL", description="Such as http://127.0.0.1:8000/v1"
    )
    model: str = Field(..., min_length=1, max_length=200, title="Model")
    usd_per_million_in: float = Field(0, ge=0, title="US dollars per million tokens in")
    usd_per_million_out: float = Field(0, ge=0, title="US dollars per million tokens out")
    requests_per_minute: RequestsPerMinute = None
    tokens_per_minute: TokensPerMinute = None
    extra_body: ExtraBody = Field(default_factory=dict)


class ExportRecipe(Recipe):
    """Writes a checkpoint as a folder that loads without PrefLab, with a model card; pushes it to a hub where asked."""

    kind: ClassVar[str] = "export"
    aim: ClassVar[str] = "Export a checkpoint"
    verb: ClassVar[str] = "Export"
    queue: ClassVar[str] = "gpu"

    checkpoint: int = points_to("checkpoint", title="Checkpoint")
    form: Literal["merged", "adapter", "as_it_is"] = Field(
        "merged", title="Form", description="merged: one set of full weights. adapter: small, needs its base."
    )
    licence: str = Field("", max_length=60, title="Licence", description="As the hub spells it, such as apache-2.0.")
    push_to: str = Field(
        "", max_length=200, title="Push to this Hugging Face repository",
        pattern=r"^$|^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$",
        description="OWNER/NAME; empty: nowhere. The worker's HF_TOKEN is used.",
    )  # fmt: skip
    is_private: bool = Field(True, title="Private repository")

    def check(self, session: Session, project_id: int) -> None:
        row = session.get(Checkpoint, self.checkpoint)
        if row is None:
            return
        if self.form == "adapter" and row.weights != "adapter":
            raise Invalid(f"“{row.name}” has full weights, not an adapter.", {"form": ["there is no adapter"]})
        if self.form == "merged" and row.role == "reward":
            raise Invalid("A reward model is exported as it was trained.", {"form": ["choose as_it_is"]})
