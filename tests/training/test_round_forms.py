"""A next round's forms: every field of the last round's recipe comes back as it was, through the form's own reader."""

from urllib.parse import parse_qsl

from starlette.datastructures import FormData

from app.html import read_form
from app.pairs.recipes import GenerateRecipe
from app.training.recipes import DpoRecipe
from app.training.rounds import _form


def posted(query: str) -> FormData:
    """What a browser would send."""
    return FormData([(name, value) for name, value in parse_qsl(query)])


def test_a_recipe_goes_through_the_address_and_back() -> None:
    sampled = GenerateRecipe(
        prompt_set=1, checkpoint=2, splits=["train"], few_shot=["Hi & bye?", "Yes."], samples=3, seed=7,
        decoding={"temperature": 0.5, "max_new_tokens": 9},
    )  # fmt: skip
    address = _form("generate", sampled.stored(), name="round 2", checkpoint=5, limit=None)
    kind, _, query = address.partition("?")
    assert kind == "new/generate"
    back = GenerateRecipe.model_validate(read_form(GenerateRecipe, posted(query)))
    assert back == sampled.model_copy(update={"name": "round 2", "checkpoint": 5})


def test_what_is_not_given_falls_back_to_its_default_and_false_stays_false() -> None:
    before = DpoRecipe(start=3, reference=1, snapshot=4, is_later_round=True, is_soft=True, lr=2e-4)
    query = _form("dpo", before.stored(), start=5, reference=5, snapshot=6, is_later_round=None).partition("?")[2]
    back = DpoRecipe.model_validate(read_form(DpoRecipe, posted(query)))
    assert (back.start, back.reference, back.snapshot, back.is_later_round) == (5, 5, 6, False)
    assert back.is_soft and back.lr == 2e-4
