"""What a generation by an endpoint would take at most, before it starts: calls, tokens and money from the prompts."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.arms import preamble_of, same_decoding
from app.checkpoints.endpoints import target_of
from app.checkpoints.models import Endpoint
from app.db import get
from app.judging.models import Call
from app.judging.trying import CHARS_PER_TOKEN, N_SAMPLED, chars_of
from app.pairs.asking import ask_for_completion
from app.pairs.recipes import GenerateRecipe
from app.prompts.models import Prompt


@dataclass(frozen=True)
class WritingForecast:
    """A launch in numbers."""

    n: int  # completions
    n_known: int = 0  # whose answers are kept already
    tokens_in: int = 0
    tokens_out: int = 0  # at most: every answer as long as it may be
    usd: float | None = None  # at most; None: a checkpoint writes


def forecast_writing(session: Session, project_id: int, recipe: GenerateRecipe) -> WritingForecast:
    """Calls, tokens and money, from the first prompts. A checkpoint costs no money."""
    of_set = (Prompt.set_id == recipe.prompt_set, col(Prompt.split).in_(recipe.splits))
    n_prompts = session.exec(select(sa.func.count()).select_from(Prompt).where(*of_set)).one()
    n_prompts = min(n_prompts, recipe.limit or n_prompts)
    if recipe.endpoint is None:
        return WritingForecast(n_prompts * recipe.samples * (1 + (recipe.other_checkpoint is not None)))
    prompts = session.exec(select(Prompt).where(*of_set).order_by(col(Prompt.position)).limit(N_SAMPLED)).all()
    if not prompts:
        return WritingForecast(0, usd=0.0)
    target = target_of(get(session, Endpoint, recipe.endpoint))
    preamble, decoding = preamble_of(recipe.system, recipe.turns()), same_decoding(recipe.decoding.model_dump())
    asked = [ask_for_completion(target, preamble, decoding, prompt, recipe.seed) for prompt in prompts]
    answered = select(sa.func.count()).select_from(Call).where(
        Call.project_id == project_id, Call.state == "answered", Call.sample < recipe.samples,
        col(Call.request_sha256).in_({key for key, _ in asked}),
    )  # fmt: skip
    n = n_prompts * recipe.samples
    n_known = round(n * session.exec(answered).one() / (len(asked) * recipe.samples))
    chars = sum(chars_of(body["messages"]) for _, body in asked) / len(asked)
    tokens_in = round((n - n_known) * chars / CHARS_PER_TOKEN)
    tokens_out = (n - n_known) * recipe.decoding.max_new_tokens
    return WritingForecast(n, n_known, tokens_in, tokens_out, target.cost_usd(tokens_in, tokens_out))
