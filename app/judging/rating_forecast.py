"""What a scoring of single completions would take, before it starts: calls, tokens and money from the real prompts."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.endpoints import target_of
from app.constitutions.constitutions import read_principles
from app.db import get
from app.judging.judges import endpoint_of
from app.judging.material import read_guide
from app.judging.models import Call, Judge
from app.judging.rating_recipes import RateRecipe
from app.judging.ratings import RatingAsk, list_completions, read_completions
from app.judging.trying import N_SAMPLED, Forecast, calibrate, chars_of
from app.pairs.models import Completion, PairSet
from app.prompts.models import Prompt

COUNTED = 2_000  # pairs, or completions of an arm, up to which they are counted one by one: a form must open at once


@dataclass(frozen=True)
class RateForecast:
    """`price.n_pairs` counts completions; beyond COUNTED pairs it is what there are at most."""

    price: Forecast
    is_at_most: bool


def forecast_rating(session: Session, project_id: int, judge: Judge, recipe: RateRecipe) -> RateForecast:
    """Calls, tokens and money of a launch, from the first completions. A local judge costs no money."""
    ids = list_completions(session, recipe, COUNTED)
    n, is_at_most = _count(session, recipe, len(ids))
    if judge.kind != "endpoint":
        n_passes = n * len(read_principles(session, recipe.constitution))
        return RateForecast(Forecast(n, n_passes), is_at_most)
    target = target_of(endpoint_of(session, judge))
    asking = RatingAsk(
        target, read_guide(session, recipe.constitution), with_reason=recipe.with_reason,
        temperature=recipe.temperature, max_tokens=recipe.max_tokens,
    )  # fmt: skip
    texts = read_completions(session, ids[:N_SAMPLED])
    if not texts:
        return RateForecast(Forecast(n, 0, usd=0.0), is_at_most)
    keys = {asking.sha256(one) for one in texts}
    known = select(sa.func.count()).select_from(Call).where(
        Call.project_id == project_id, Call.state == "answered", Call.sample == 0, col(Call.request_sha256).in_(keys)
    )  # fmt: skip
    n_known = round(n * session.exec(known).one() / len(keys))
    chars = sum(chars_of(asking.request(one)[0]["messages"]) for one in texts) / len(texts)
    guess = min((80 if recipe.with_reason else 20) + 12 * len(asking.guide.keys), recipe.max_tokens)
    n_earlier, per_token, out = calibrate(session, project_id, target.model, guess, "scores")
    tokens_in, tokens_out = (round((n - n_known) * each) for each in (chars / per_token, out))
    usd = target.cost_usd(tokens_in, tokens_out)
    return RateForecast(Forecast(n, n - n_known, n_known, tokens_in, tokens_out, usd, n_earlier), is_at_most)


def _count(session: Session, recipe: RateRecipe, n_listed: int) -> tuple[int, bool]:
    """(completions, whether there may be fewer)."""
    if recipe.limit is not None and n_listed >= recipe.limit:
        return n_listed, False
    if recipe.pair_set is not None:
        n_pairs = get(session, PairSet, recipe.pair_set).n
        n = n_listed if n_pairs <= COUNTED else 2 * n_pairs
        return (min(n, recipe.limit) if recipe.limit else n), n_pairs > COUNTED
    if n_listed < COUNTED:
        return n_listed, False
    of_arm = (
        sa.select(sa.func.count()).select_from(Completion).join(Prompt, col(Prompt.id) == col(Completion.prompt_id))
    )
    of_arm = of_arm.where(col(Prompt.set_id) == recipe.prompt_set, col(Completion.arm_id) == recipe.arm)
    if recipe.splits:
        of_arm = of_arm.where(col(Prompt.split).in_(recipe.splits))
    n = int(session.execute(of_arm).scalar_one())
    return (min(n, recipe.limit) if recipe.limit else n), False
