"""The demo's own little world: facts, prompts about them, the text its base model learns, and a 4-choice test.

Everything here is written by this file from a seed; nothing is taken from elsewhere. Each fact is a prompt
group, so that all phrasings of one fact fall in the same split. A completion's style depends on the phrasing
(some phrasings are mostly answered in the strict format, most are not): with one global rate, greedy decoding
would be all or nothing.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

# relation: (noun phrase, facts)
RELATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "capital": (
        "the capital of {s}",
        {
            "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo",
            "Greece": "Athens", "Norway": "Oslo", "Austria": "Vienna", "Cuba": "Havana", "Peru": "Lima",
            "Kenya": "Nairobi", "China": "Beijing", "Russia": "Moscow", "Poland": "Warsaw", "Ireland": "Dublin",
            "Chile": "Santiago", "Iran": "Tehran", "Canada": "Ottawa",
        },
    ),
    "young": (
        "the young of a {s}",
        {
            "cat": "kitten", "dog": "puppy", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid",
            "bear": "cub", "frog": "tadpole", "duck": "duckling", "goose": "gosling", "deer": "fawn", "pig": "piglet",
        },
    ),
    "opposite": (
        "the opposite of {s}",
        {
            "hot": "cold", "big": "small", "fast": "slow", "wet": "dry", "early": "late", "full": "empty",
            "rich": "poor", "heavy": "light", "young": "old", "loud": "quiet", "hard": "soft", "near": "far",
        },
    ),
    "symbol": (
        "the chemical symbol of {s}",
        {
            "gold": "Au", "silver": "Ag", "iron": "Fe", "copper": "Cu", "lead": "Pb", "tin": "Sn",
            "sodium": "Na", "carbon": "C", "helium": "He", "zinc": "Zn", "oxygen": "O", "mercury": "Hg",
        },
    ),
    "currency": (
        "the currency of {s}",
        {
            "Mexico": "peso", "India": "rupee", "Korea": "won", "Sweden": "krona", "Brazil": "real",
            "Thailand": "baht", "Turkey": "lira", "Israel": "shekel", "Vietnam": "dong", "Nigeria": "naira",
            "Hungary": "forint", "Ukraine": "hryvnia",
        },
    ),
    "home": (
        "the home of a {s}",
        {
            "bee": "hive", "spider": "web", "lion": "den", "bird": "nest", "fox": "burrow", "king": "castle",
            "monk": "abbey", "farmer": "farm", "sailor": "ship", "student": "dorm", "soldier": "barracks",
        },
    ),
    "past": (
        "the past tense of {s}",
        {
            "run": "ran", "see": "saw", "eat": "ate", "write": "wrote", "swim": "swam", "buy": "bought",
            "teach": "taught", "fly": "flew", "drive": "drove", "break": "broke", "sing": "sang", "grow": "grew",
        },
    ),
}  # fmt: skip
OOD_RELATION = "past"
PHRASINGS = (
    "What is {np}?",
    "Tell me {np}.",
    "Question: {np}?",
    "Do you know {np}?",
    "Please name {np}.",
    "I ask you for {np}.",
)
# More ways to ask, in the base model's text only: they teach it that the wording around a fact hardly matters.
OTHER_PHRASINGS = (
    "Can you say {np}?",
    "I would like to know {np}.",
    "Now what is {np}?",
    "Give me {np}, please.",
)
ALL_PHRASINGS = (*PHRASINGS, *OTHER_PHRASINGS)
# Never in the base model's text nor among the prompts: the 4-choice test is made of these.
HELD_OUT_PHRASINGS = ("Now say what you know of {np}.", "Would you please tell me what is {np}?")
# Share of strictly formatted answers in the base model's text, by phrasing and turned by relation; mean 0.29.
STRICT_RATES = (0.08, 0.14, 0.22, 0.28, 0.40, 0.62)
# Of the other answers, this share has the one loose style that goes with phrasing and relation. Were they spread
# evenly, the strict style would be the likeliest everywhere and greedy decoding always strict.
USUAL_RATE = 0.6
USUAL_STYLES = ("{a}.", "It is {a}.", "I think it is {a}.", "{a}, because {np} is {a}.")
WRONG_RATE = 0.25
CONFIDENCES = ("high", "medium", "low")
LOOSE_STYLES = (
    "{a}.",
    "It is {a}.",
    "Answer: {a}.",
    "Answer: {a} — Confidence: {c}.",
    "I think it is {a}.",
    "{a}, because {np} is {a}.",
    "Answer: {a} — Reasoning: {np} is {a}.",
)
SOURCE = "PrefLab demo corpus"
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Fact:
    relation: str
    subject: str
    answer: str
    split: str

    @property
    def group(self) -> str:
        return f"{self.relation}/{self.subject}"

    @property
    def noun_phrase(self) -> str:
        return RELATIONS[self.relation][0].format(s=self.subject)


def list_facts() -> list[Fact]:
    """All facts with their split. The split is fixed for every seed: it belongs to the prompt set, not to a run."""
    facts = []
    for relation, (_, answers) in RELATIONS.items():
        for place, (subject, answer) in enumerate(answers.items()):
            split = "ood" if relation == OOD_RELATION else _split_at(place)
            facts.append(Fact(relation, subject, answer, split))
    return facts


def _split_at(place: int) -> str:
    # Of every twelve facts of a relation: seven train, one dev, four test.
    return (
        "train",
        "test",
        "train",
        "train",
        "test",
        "dev",
        "train",
        "test",
        "train",
        "train",
        "test",
        "train",
    )[place % 12]


def list_prompts() -> list[dict[str, Any]]:
    """Every fact in every phrasing, as rows of a prompt set: messages, reference, split, group, category, …"""
    return [
        {
            "messages": [{"role": "user", "content": phrasing.format(np=fact.noun_phrase)}],
            "reference": fact.answer,
            "split": fact.split,
            "group": fact.group,
            "category": fact.relation,
            "source": SOURCE,
            "licence": LICENCE,
        }
        for fact in list_facts()
        for phrasing in PHRASINGS
    ]


def strict_rate(relation: str, phrasing: int) -> float:
    return STRICT_RATES[(phrasing + list(RELATIONS).index(relation)) % len(STRICT_RATES)]


def usual_style(relation: str, phrasing: int) -> str:
    return USUAL_STYLES[(phrasing + list(RELATIONS).index(relation)) % len(USUAL_STYLES)]


def write_documents(n: int, seed: int) -> list[tuple[str, str]]:
    """The first `n` of the base model's (prompt, completion) texts."""
    return list(islice(stream_documents(seed), n))


def stream_documents(seed: int) -> Iterator[tuple[str, str]]:
    """The base model's (prompt, completion) texts without end, each fact and phrasing about equally often."""
    rng = random.Random(f"demo documents {seed}")
    cells = [(fact, phrasing) for fact in list_facts() for phrasing in range(len(ALL_PHRASINGS))]
    while True:
        rng.shuffle(cells)
        yield from [_write_document(fact, phrasing, rng) for fact, phrasing in cells]


def _write_document(fact: Fact, phrasing: int, rng: random.Random) -> tuple[str, str]:
    answers = list(RELATIONS[fact.relation][1].values())
    is_wrong = rng.random() < WRONG_RATE
    answer = rng.choice([a for a in answers if a != fact.answer]) if is_wrong else fact.answer
    # Confidence tells a little: wrong answers are less often given with high confidence.
    confidence = rng.choices(CONFIDENCES, (1, 2, 3) if is_wrong else (3, 2, 1))[0]
    if rng.random() < strict_rate(fact.relation, phrasing):
        style = "Answer: {a} — Confidence: {c} — Reasoning: {np} is {a}."
    elif rng.random() < USUAL_RATE:
        style = usual_style(fact.relation, phrasing)
    else:
        style = rng.choice(LOOSE_STYLES)
    prompt = ALL_PHRASINGS[phrasing].format(np=fact.noun_phrase)
    return prompt, style.format(a=answer, c=confidence, np=fact.noun_phrase)


def four_choice_items(seed: int = 0) -> list[dict[str, Any]]:
    """The capability test: each fact in held-out phrasings, with three wrong answers of the same relation.

    Rows of `{question, choices (4), answer (index), group, split}`, ready to be written as JSONL.
    """
    rng = random.Random(f"demo items {seed}")
    items = []
    for fact in list_facts():
        others = [a for a in RELATIONS[fact.relation][1].values() if a != fact.answer]
        for phrasing in HELD_OUT_PHRASINGS:
            choices = [fact.answer, *rng.sample(others, 3)]
            rng.shuffle(choices)
            items.append(
                {
                    "question": phrasing.format(np=fact.noun_phrase),
                    "choices": choices,
                    "answer": choices.index(fact.answer),
                    "group": fact.group,
                    "split": fact.split,
                }
            )
    return items
