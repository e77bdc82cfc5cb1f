"""The form of an endpoint. Its key is no field of it: a key is never shown, nor kept when a form comes back."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.datastructures import FormData

from app.checkpoints.models import Endpoint
from app.errors import Invalid
from app.html import read_form
from app.runs.recipe import check_text

# A call says these itself, by its recipe; or our client could not read the answer, or would pay for more than one.
OWN_FIELDS = (
    "model", "messages", "temperature", "max_tokens", "max_completion_tokens", "response_format", "n", "stream",
    "stream_options", "logprobs", "top_logprobs",
)  # fmt: skip
MOST_EXTRA = 4000  # characters


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
    requests_per_minute: int | None = Field(
        None, ge=1, le=1_000_000, title="Requests a minute",
        description="Calls beyond these wait. Each run keeps to it by itself: two at once may use twice as many.",
    )  # fmt: skip
    tokens_per_minute: int | None = Field(
        None, ge=1, le=1_000_000_000, title="Tokens a minute",
        description="In and out, estimated before a call leaves and put right after its answer.",
    )  # fmt: skip
    extra_body: dict[str, Any] = Field(
        default_factory=dict, title="Extra fields of every request", json_schema_extra={"rows": 3},
        description='A JSON object, such as {"chat_template_kwargs": {"enable_thinking": false}}.',
    )  # fmt: skip

    @field_validator("extra_body", mode="before")
    @classmethod
    def _read_extra_body(cls, given: Any) -> Any:
        """A JSON object, from text where a form sends it; raises ValueError naming what may not stand in it."""
        if isinstance(given, str):
            if len(given) > MOST_EXTRA:
                raise ValueError(f"more than {MOST_EXTRA:,} characters")
            try:
                given = json.loads(given or "{}", parse_constant=_refuse_constant)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"no JSON: {error}") from error
        if not isinstance(given, dict):
            raise ValueError('write a JSON object, such as {"top_k": 20}')
        for name in OWN_FIELDS:
            if name in given:
                raise ValueError(f"“{name}” is set by each call: take it out")
        check_text(given)
        json.dumps(given, allow_nan=False)
        return given


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def endpoint_form_values(endpoint: Endpoint) -> dict[str, Any]:
    """What the form of an endpoint shows: everything but its key."""
    extra = json.dumps(endpoint.extra_body, ensure_ascii=False) if endpoint.extra_body else ""
    return {**endpoint.model_dump(exclude={"key_ciphertext"}), "extra_body": extra}


def read_endpoint_form(form: FormData) -> EndpointForm:
    """The posted form; raises Invalid keyed by field."""
    try:
        return EndpointForm.model_validate(read_form(EndpointForm, form))
    except ValidationError as error:
        fields = {str(item["loc"][0]): [item["msg"].removeprefix("Value error, ")] for item in error.errors()}
        raise Invalid("Please correct the marked fields.", fields) from error


def endpoint_as_json(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as the API shows it: of its key, the last four characters."""
    return endpoint.model_dump(mode="json", exclude={"project_id", "key_ciphertext"})
