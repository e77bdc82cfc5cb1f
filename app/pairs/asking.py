"""A completion asked of an endpoint: what is sent, and the hash under which its answer is kept."""

from collections.abc import Mapping
from typing import Any

from app.checkpoints.arms import put_before
from app.checkpoints.chat import Body, Messages, Target, chat_body
from app.prompts.models import Prompt
from app.runs.recipe import sha256_of


def ask_for_completion(
    target: Target, preamble: Messages, decoding: Mapping[str, Any], prompt: Prompt, seed: int
) -> tuple[str, Body]:
    """(hash, request). The hash holds all that decides the answer but the sample's number: the request, the prompt, and
    the run's seed unless the request is greedy. So another seed asks anew, and the same run again does not."""
    more = {"top_p": decoding["top_p"]} if decoding.get("top_p", 1) < 1 else {}
    body = chat_body(
        target, put_before(preamble, prompt.messages), max_tokens=decoding["max_new_tokens"],
        temperature=decoding["temperature"], **more,
    )  # fmt: skip
    is_greedy = body.get("temperature") == 0
    known = {"kind": "generate", "origin": target.origin, "body": body, "prompt": prompt.sha256,
             "seed": None if is_greedy else seed}  # fmt: skip
    return sha256_of(known), body
