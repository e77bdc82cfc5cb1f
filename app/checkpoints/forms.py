"""The form of an endpoint. Its key is no field of it: a key is never shown, nor kept when a form comes back."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData

from app.checkpoints.fields import ExtraBody, RequestsPerMinute, TokensPerMinute
from app.checkpoints.models import Endpoint
from app.errors import Invalid, field_messages
from app.html import read_form


class EndpointForm(BaseModel):
    """What an endpoint is, apart from its key."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    name: str = Field("", max_length=110, title="Name", description="Made up from the model when empty.")
    origin: str = Field(
        ..., min_length=8, max_length=300, title="Base URL", description="Such as http://127.0.0.1:8000/v1"
    )
    model: str = Field(..., min_length=1, max_length=200, title="Model", description="As the server calls it.")
    usd_per_million_in: float = Field(0, ge=0, le=1e6, title="US dollars per million tokens in")
    usd_per_million_out: float = Field(0, ge=0, le=1e6, title="US dollars per million tokens out")
    requests_per_minute: RequestsPerMinute = None
    tokens_per_minute: TokensPerMinute = None
    extra_body: ExtraBody = Field(default_factory=dict)


def endpoint_form_values(endpoint: Endpoint) -> dict[str, Any]:
    """What the form of an endpoint shows: everything but its key."""
    extra = json.dumps(endpoint.extra_body, ensure_ascii=False) if endpoint.extra_body else ""
    return {**endpoint.model_dump(exclude={"key_ciphertext"}), "extra_body": extra}


def read_endpoint_form(form: FormData) -> EndpointForm:
    """The posted form; raises Invalid keyed by field."""
    try:
        return EndpointForm.model_validate(read_form(EndpointForm, form))
    except ValidationError as error:
        raise Invalid("Please correct the marked fields.", field_messages(error.errors())) from error


def endpoint_as_json(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as the API shows it: of its key, the last four characters."""
    return endpoint.model_dump(mode="json", exclude={"project_id", "key_ciphertext"})
