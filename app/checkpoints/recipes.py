"""Recipes that bring a checkpoint or an endpoint into the project."""

from typing import ClassVar, Literal

from pydantic import Field

from app.runs.recipe import Recipe


class ImportCheckpointRecipe(Recipe):
    """A Hugging Face id or a local directory; safetensors only, no remote code."""

    kind: ClassVar[str] = "import_checkpoint"
    aim: ClassVar[str] = "Import a checkpoint"
    verb: ClassVar[str] = "Import"

    source: str = Field(..., min_length=1, max_length=500, title="Hugging Face id or directory on the server")
    revision: str = Field("", max_length=80, title="Revision", description="For a Hugging Face id; empty means main.")
    role: Literal["policy", "reward"] = Field("policy", title="Role")


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
