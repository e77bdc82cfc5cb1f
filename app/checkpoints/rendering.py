"""How a checkpoint's chat template renders messages, without its tokenizer: for looking at prompts in a page.

The template is run by Jinja's immutable sandbox, as the libraries do it. What the worker sends is rendered there again,
by the tokenizer itself; a checkpoint without a template, or one whose template needs more than this, is said to be so.
"""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.checkpoints.models import Checkpoint
from app.config import settings

Render = Callable[[list[dict[str, str]], bool], str]
LONGEST = 200_000  # characters of a template or a configuration that is read


class NoTemplate(Exception):
    """The messages cannot be rendered here; the message is the reason."""


def render_chat(checkpoint: Checkpoint, messages: list[dict[str, str]]) -> str:
    """The text that the checkpoint's template makes of messages; raises NoTemplate."""
    return load_chat(settings().data_path / checkpoint.path, checkpoint.name)(messages, True)


def load_chat(folder: Path, name: str) -> Render:
    """What renders messages, with or without the opening of an answer; it raises NoTemplate, and so does this."""
    config = _read(folder / "tokenizer_config.json")
    known: dict[str, Any] = json.loads(config) if config else {}
    source = _read(folder / "chat_template.jinja") or known.get("chat_template")
    if not isinstance(source, str) or not source:
        raise NoTemplate(f"{name} has no chat template")
    tokens = read_tokens(folder)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now(datetime.UTC).strftime(form)
    environment.globals["raise_exception"] = _refuse
    try:
        template = environment.from_string(source)
    except TemplateError as error:
        raise NoTemplate(f"the chat template of {name} cannot be read: {str(error)[:200]}") from error

    def render(messages: list[dict[str, str]], is_asked: bool) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=is_asked, tools=None, **tokens)
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise NoTemplate(f"the chat template of {name} refuses these messages: {str(error)[:200]}") from error

    return render


def read_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a tokenizer's configuration names, as text."""
    config = _read(folder / "tokenizer_config.json")
    known: dict[str, Any] = json.loads(config) if config else {}
    return {name: _token(known.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}


def _refuse(message: str) -> Any:
    raise TemplateError(message)


def _token(value: Any) -> str:
    found = value.get("content", "") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() and _fits(file) else ""


def _fits(file: Path) -> bool:
    return file.stat().st_size <= 40 * LONGEST
