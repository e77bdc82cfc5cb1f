"""The playground: one message to several players at once. A turn is a run, so it can be linked to and repeated.

What each player says stands in the run's `sampled` rows, place by place, and grows there while it is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field, model_validator
from sqlmodel import Session, col, select

from app.checkpoints.arms import put_before
from app.checkpoints.models import Arm, Checkpoint, Endpoint
from app.db import get
from app.errors import Conflict, Invalid, NotFound
from app.pairs.recipes import Decoding
from app.runs.models import Run, Sampled
from app.runs.recipe import Recipe, points_to

MOST_PLAYERS, MOST_TURNS = 12, 50
FINISHED = {"stop", "length", "refused"}  # ends with a text; the others are waiting, writing and failed
Messages = list[dict[str, str]]


class PlayRecipe(Recipe):
    """One turn of a conversation with each of several players, all under the same settings and seed."""

    kind: ClassVar[str] = "play"
    aim: ClassVar[str] = "Ask several at once"
    queue: ClassVar[str] = "gpu"
    verb: ClassVar[str] = "Send"

    said: str = Field(min_length=1, max_length=100_000, title="Message", json_schema_extra={"rows": 4})
    checkpoints: list[int] = points_to("checkpoint", title="Checkpoints", default=[], where={"role": "policy"})
    endpoints: list[int] = points_to("endpoint", title="Endpoints", default=[])
    arms: list[int] = points_to(
        "arm",
        title="Arms",
        default=[],
        description="With what stands before each prompt; the settings are those below.",
    )
    system: str = Field("", max_length=100_000, title="System message", json_schema_extra={"rows": 2})
    after: int | None = Field(None, ge=1, title="Goes on from run", description="The turn before this one.")
    decoding: Decoding = Field(Decoding(), title="Decoding")

    @model_validator(mode="after")
    def _has_players(self) -> "PlayRecipe":
        n = len(self.player_keys())
        if not 1 <= n <= MOST_PLAYERS:
            raise ValueError(f"choose one to {MOST_PLAYERS} checkpoints, endpoints or arms")
        return self

    def player_keys(self) -> list[str]:
        """The players in their places, each once."""
        chosen = (("checkpoint", self.checkpoints), ("endpoint", self.endpoints), ("arm", self.arms))
        return list(dict.fromkeys(f"{noun}:{key}" for noun, keys in chosen for key in keys))

    def title(self) -> str:
        return self.name or " ".join(self.said.split())[:80]

    def pick_queue(self, session: Session) -> str:
        return "gpu" if any(one.checkpoint_id for one in read_players(session, self)) else "io"

    def check(self, session: Session, project_id: int) -> None:
        read_players(session, self)
        if self.after is not None:
            turns = read_turns(session, project_id, self.after)
            if len(turns) >= MOST_TURNS:
                raise Invalid(f"A conversation has {MOST_TURNS} turns at most: begin a new one.")
            if turns[-1].run.is_live:
                raise Conflict("The turn before is still being written: wait for it, or stop it.")
            silent = [key for key in self.player_keys() if not turns[-1].answers.get(key)]
            if silent:
                raise Invalid(f"{len(silent)} of these said nothing in the turn before ({silent[0]}): leave them out.")


@dataclass(frozen=True)
class Player:
    """Who answers: a policy checkpoint or an endpoint, with what an arm puts before each prompt."""

    key: str
    name: str
    method: str
    checkpoint_id: int | None = None
    endpoint_id: int | None = None
    preamble: Messages = field(default_factory=list)


def read_players(session: Session, recipe: PlayRecipe) -> list[Player]:
    """The players of a recipe in their places; raises Invalid for what writes no text."""
    found = []
    for key in recipe.player_keys():
        noun, _, row_id = key.partition(":")
        if noun == "checkpoint":
            row = get(session, Checkpoint, int(row_id))
            if row.role != "policy":
                raise Invalid(f"“{row.name}” is a reward model, which writes nothing.", {"checkpoints": [row.name]})
            found.append(Player(key, row.name, row.method, checkpoint_id=row.id))
        elif noun == "endpoint":
            server = get(session, Endpoint, int(row_id))
            if server.archived_at is not None:
                raise Invalid(f"The endpoint “{server.name}” is archived.", {"endpoints": [server.name]})
            found.append(Player(key, server.name, "endpoint", endpoint_id=server.id))
        else:
            arm = get(session, Arm, int(row_id))
            if arm.kind == "imported":
                raise Invalid(f"“{arm.name}” came with a file and writes nothing new.", {"arms": [arm.name]})
            found.append(
                Player(key, arm.name, arm.method, arm.checkpoint_id, arm.endpoint_id, list(arm.preamble))
            )  # fmt: skip
    return found


@dataclass(frozen=True)
class Turn:
    """One turn as it stands: the run, and each player's row by its key."""

    run: Run
    rows: Mapping[str, Sampled]

    @property
    def answers(self) -> dict[str, str]:
        """What was said, by player; who failed or said nothing is left out."""
        return {key: row.text for key, row in self.rows.items() if row.text and row.detail.get("state") != "failed"}


def read_turns(session: Session, project_id: int, run_id: int) -> list[Turn]:
    """A conversation from its first turn to this one; raises NotFound."""
    turns: list[Turn] = []
    key: int | None = run_id
    while key is not None and len(turns) <= MOST_TURNS:
        run = get(session, Run, key)
        if run.project_id != project_id or run.kind != PlayRecipe.kind:
            raise NotFound(f"Run {key} is no turn of a conversation in this project.")
        rows = session.exec(
            select(Sampled).where(Sampled.run_id == run.id, Sampled.step == 0).order_by(col(Sampled.place))
        )
        turns.append(Turn(run, {str(row.detail.get("player", "")): row for row in rows}))
        key = run.recipe.get("after")
    return turns[::-1]


def messages_for(player: Player, recipe: PlayRecipe, before: list[Turn]) -> Messages:
    """What this player reads: its arm's preamble, the system message, its own earlier turns, and the message."""
    said: Messages = [{"role": "system", "content": recipe.system}] if recipe.system.strip() else []
    for turn in before:
        said.append({"role": "user", "content": str(turn.run.recipe["said"])})
        said.append({"role": "assistant", "content": turn.answers.get(player.key, "")})
    return put_before(player.preamble, [*said, {"role": "user", "content": recipe.said}])


def state_of(run: Run, row: Sampled) -> str:
    """How far a player is, in words."""
    state = str(row.detail.get("state", "waiting"))
    if state in {"waiting", "writing"} and not run.is_live:
        return "stopped" if run.status == "cancelled" else "not finished"
    words: dict[str, Any] = {"stop": "ended by itself", "length": "ran out of tokens"}
    return str(words.get(state, state))
