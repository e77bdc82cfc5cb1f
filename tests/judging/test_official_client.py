"""Our endpoint client beside OpenAI's own: the same request on the wire, the same reading of the answer."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from app.checkpoints.chat import ChatAnswer, Target, ask_each, chat_body
from tests.chat_server import ChatServer

MESSAGES = [
    {"role": "system", "content": "Answer in one word – ünïcode too."},
    {"role": "user", "content": "Which is longer, “a” or “bb”?\n"},
]


def ask_ours(target: Target, body: dict[str, Any]) -> ChatAnswer:
    # In a thread of its own: a browser started by an earlier test keeps this one's event loop running.
    with ThreadPoolExecutor(1) as thread:
        asked = ask_each(target, [body], concurrency=1, max_tries=1, timeout_s=10)
        return thread.submit(asyncio.run, asked).result()[0]


@pytest.mark.parametrize("max_tokens", [2, 100])
def test_the_official_client_sends_and_reads_the_same(max_tokens: int) -> None:
    with ChatServer(lambda _: "bb is longer, by one") as server:
        target = Target(server.origin, "some-model", key="secret")
        body = chat_body(target, MESSAGES, max_tokens=max_tokens, temperature=0.5, n=1)
        ours = ask_ours(target, body)
        client = openai.OpenAI(base_url=server.origin, api_key="secret", max_retries=0)
        theirs: Any = client.chat.completions.create(**body)
        sent_by_us, sent_by_them = server.requests
        authorised = {headers["Authorization"] for headers in server.headers}
    assert sent_by_us == sent_by_them and authorised == {"Bearer secret"}
    choice = theirs.choices[0]
    assert (ours.text, ours.stop_reason) == (choice.message.content, choice.finish_reason)
    assert (ours.tokens_in, ours.tokens_out) == (theirs.usage.prompt_tokens, theirs.usage.completion_tokens)


def test_a_refusal_is_the_same_status_in_both() -> None:
    with ChatServer(refuses=("temperature",)) as server:
        target = Target(server.origin, "some-model")
        body = chat_body(target, MESSAGES, max_tokens=8, temperature=0.5)
        ours = ask_ours(target, body)
        client = openai.OpenAI(base_url=server.origin, api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**body)
    assert ours.status == refused.value.status_code == 400
    assert "Unsupported parameter: temperature" in ours.failure
