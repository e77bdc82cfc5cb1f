"""Fields that an endpoint's own form and the recipe that adds one have in common: its pace and its extra fields."""

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from app.runs.recipe import check_text

# A call says these itself, by its recipe; or our client could not read the answer, or would pay for more than one.
OWN_FIELDS = (
    "model", "messages", "temperature", "max_tokens", "max_completion_tokens", "response_format", "n", "stream",
    "stream_options", "logprobs", "top_logprobs",
)  # fmt: skip
MOST_EXTRA = 4000  # characters


def read_extra_body(given: Any) -> Any:
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


RequestsPerMinute = Annotated[
    int | None,
    Field(
        ge=1, le=1_000_000, title="Requests a minute",
        description="Calls beyond these wait. Each run keeps to it by itself: two at once may use twice as many.",
    ),
]  # fmt: skip
TokensPerMinute = Annotated[
    int | None,
    Field(
        ge=1, le=1_000_000_000, title="Tokens a minute",
        description="In and out, estimated before a call leaves and put right after its answer.",
    ),
]  # fmt: skip
ExtraBody = Annotated[
    dict[str, Any],
    BeforeValidator(read_extra_body),
    Field(
        title="Extra fields of every request", json_schema_extra={"rows": 3},
        description='A JSON object, such as {"chat_template_kwargs": {"enable_thinking": false}}.',
    ),
]  # fmt: skip
