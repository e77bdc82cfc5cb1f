"""The playground: every player's answer to one message, stored piece by piece while it is written.

Endpoints answer at the same time, each over a stream of its own; local checkpoints one after the other, each sampled
with the run's seed, so that the same turn gives the same texts. A turn that is taken up again asks only who had not
finished.
"""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa
from sqlmodel import col, select

from app.checkpoints.chat import ChatAnswer, chat_body
from app.checkpoints.endpoints import target_of
from app.checkpoints.models import Endpoint
from app.checkpoints.streaming import ask_streaming
from app.db import clean_text, get
from app.errors import AppError
from app.pairs.playing import FINISHED, Messages, Player, PlayRecipe, messages_for, read_players, read_turns
from app.runs.models import Sampled
from worker.job import Job
from worker.ledger import add_cost

STORED_EVERY_S = 0.15
TIMEOUT_S = 600.0


def play(job: Job) -> None:
    """Has each player answer; who fails says why in its place."""
    recipe: PlayRecipe = job.recipe
    with job.read() as session:
        players = read_players(session, recipe)
        before = read_turns(session, job.project_id, recipe.after) if recipe.after is not None else []
    board = Board(job, players)
    asked = {
        place: messages_for(player, recipe, before) for place, player in enumerate(players) if board.is_open(place)
    }
    distant = _Endpoints(job, board, players, {p: m for p, m in asked.items() if players[p].endpoint_id is not None})
    try:
        _play_locally(job, board, players, {p: m for p, m in asked.items() if players[p].checkpoint_id is not None})
        while not distant.is_done:
            board.store()
            time.sleep(STORED_EVERY_S / 3)
    finally:
        distant.stop()
    board.store(is_now=True)
    if all(state == "failed" for state in board.states()):
        raise AppError(f"Nobody could answer; the first of them: {board.details[0]['why']}")
    job.progress(len(players), len(players))


class Board:
    """What each player has said so far: written by whoever hears it, stored by the run's own thread."""

    def __init__(self, job: Job, players: list[Player]) -> None:
        self.job, self.players = job, players
        of_run = select(Sampled).where(Sampled.run_id == job.run_id, Sampled.step == 0)
        with job.read() as session:
            known = {row.place: row for row in session.exec(of_run)}
        self.texts = [""] * len(players)
        self.details: list[dict[str, Any]] = []
        for place, player in enumerate(players):
            fresh = {"player": player.key, "name": player.name, "method": player.method, "state": "waiting"}
            row = known.get(place)
            if row is not None and row.detail.get("state") in FINISHED:
                self.texts[place], fresh = row.text, row.detail
            self.details.append(fresh)
        said = job.recipe.said
        job.sampled(0, [(said, text, None, detail) for text, detail in zip(self.texts, self.details, strict=True)])
        self._stored: dict[int, Any] = {}
        self._unpaid = {place for place in range(len(players)) if self.is_open(place)}
        self._stored_at = 0.0

    def is_open(self, place: int) -> bool:
        """Whether this player has not finished."""
        return self.details[place]["state"] not in FINISHED

    def states(self) -> list[str]:
        """Each player's state."""
        return [str(detail["state"]) for detail in self.details]

    def hear(self, place: int, text: str) -> None:
        """The text so far."""
        self.texts[place] = text
        self.details[place] = {**self.details[place], "state": "writing"}

    def end(self, place: int, state: str, text: str, **more: Any) -> None:
        """The whole text, and how it ended."""
        self.texts[place] = text
        self.details[place] = {**self.details[place], "state": state, **more}

    def store(self, is_now: bool = False) -> None:
        """Stores what is new, a few times a second. Raises Cancelled."""
        if not is_now and time.monotonic() - self._stored_at < STORED_EVERY_S:
            return
        self._stored_at = time.monotonic()
        now = {place: (text, dict(self.details[place])) for place, text in enumerate(self.texts)}
        changed = {place: one for place, one in now.items() if self._stored.get(place) != one}
        if changed:
            with self.job.write() as session:
                for place, (text, detail) in changed.items():
                    if "n_tokens" in detail and place in self._unpaid:
                        self._unpaid.remove(place)
                        add_cost(
                            session, self.job.run_id, generated_tokens=detail["n_tokens"], usd=detail.get("usd", 0)
                        )
                    mine = sa.update(Sampled).where(
                        col(Sampled.run_id) == self.job.run_id, col(Sampled.step) == 0, col(Sampled.place) == place
                    )
                    session.execute(mine.values(text=clean_text(text), detail=detail))
            self._stored = now
        done = sum(state in FINISHED or state == "failed" for state in self.states())
        self.job.progress(min(done, len(self.players) - 1), len(self.players))


class _Hearing:
    """A streamer as transformers calls it: the prompt's ids first, then each new token."""

    def __init__(self, board: Board, place: int, tokenizer: Any) -> None:
        self.board, self.place, self.tokenizer = board, place, tokenizer
        self.ids: list[int] | None = None
        self._heard_at = 0.0

    def put(self, value: Any) -> None:
        if self.ids is None:
            self.ids = []  # the prompt
            return
        self.ids += value.reshape(-1).tolist()
        if time.monotonic() - self._heard_at > STORED_EVERY_S / 2:
            self._heard_at = time.monotonic()
            text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
            self.board.hear(self.place, text.rstrip("\ufffd"))  # half of a character, the rest still to come
            self.board.store()

    def end(self) -> None:
        """The caller stores the end."""


def _play_locally(job: Job, board: Board, players: list[Player], asked: Mapping[int, Messages]) -> None:
    if not asked:
        return
    from worker.checkpoints import weights_of  # loads torch, which a turn of endpoints alone does not need
    from worker.llm import LocalModel, batch_seed

    model, loaded = None, 0
    decoding = job.recipe.decoding.model_dump()
    for place in sorted(asked, key=lambda place: (players[place].checkpoint_id or 0, place)):
        key = players[place].checkpoint_id or 0
        board.store(is_now=True)
        started = time.monotonic()
        try:
            if model is None or loaded != key:
                model = None  # the last one's memory is free before the next is loaded
                with job.read() as session:
                    weights = weights_of(session, key)
                model, loaded = LocalModel(weights), key
            one = model.sample(
                [asked[place]], decoding, batch_seed(job.seed, "play"), board.store,
                _Hearing(board, place, model.tokenizer),
            )[0]  # fmt: skip
        except AppError as error:
            board.end(place, "failed", "", why=error.message)
            continue
        if one.is_prompt_truncated:
            job.log(
                f"{players[place].name}: the conversation does not fit its context and lost its beginning", "warning"
            )
        seconds = round(time.monotonic() - started, 2)
        board.end(place, one.stop_reason, one.text, n_tokens=one.n_tokens, seconds=seconds)


class _Endpoints:
    """All endpoints at once, in an event loop of a thread of its own; what they say goes to the board."""

    def __init__(self, job: Job, board: Board, players: list[Player], asked: Mapping[int, Messages]) -> None:
        self.board, self.asked, self.decoding, self.seed = board, asked, job.recipe.decoding, job.seed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Future[Any] | None = None
        self._is_stopped = False
        with job.read() as session:
            servers = {place: get(session, Endpoint, players[place].endpoint_id or 0) for place in asked}
            self.targets = {place: target_of(one) for place, one in servers.items()}
        self._pool = ThreadPoolExecutor(1, "endpoints")
        self._end = self._pool.submit(lambda: asyncio.run(self._all()))

    @property
    def is_done(self) -> bool:
        """Whether all have answered; raises what broke, should a mistake of ours have."""
        return self._end.done() and self._end.result() is None

    async def _all(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.gather(*(self._one(place) for place in self.asked))
        if self._is_stopped:  # before there was anything to cancel
            self._task.cancel()
        await self._task

    async def _one(self, place: int) -> None:
        target, decoding = self.targets[place], self.decoding
        more = {"top_p": decoding.top_p} if decoding.top_p < 1 else {}
        body = chat_body(
            target, self.asked[place], max_tokens=decoding.max_new_tokens, temperature=decoding.temperature,
            seed=self.seed, **more,
        )  # fmt: skip
        async with target.transport(1) as transport:
            answer = await ask_streaming(
                transport, target, body, lambda text: self.board.hear(place, text), timeout_s=TIMEOUT_S
            )
        self.board.end(place, _state_of(answer), answer.text, **_facts_of(answer))

    def stop(self) -> None:
        """Closes the streams that are still open."""
        self._is_stopped = True
        if self._loop is not None and self._task is not None and not self._end.done():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._pool.shutdown()


def _state_of(answer: ChatAnswer) -> str:
    if answer.failure:
        return "failed"
    return {"length": "length", "content_filter": "refused"}.get(answer.stop_reason, "stop")


def _facts_of(answer: ChatAnswer) -> dict[str, Any]:
    if answer.failure:
        return {"why": answer.failure}
    return {"n_tokens": answer.tokens_out, "seconds": round(answer.seconds, 2), "usd": answer.cost_usd}
