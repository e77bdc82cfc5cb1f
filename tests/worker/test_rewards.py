"""What PPO and GRPO share: which reward models may score their completions."""

from typing import Any

import pytest

from app.config import settings
from app.projects.models import Project
from tests.judging.rows import do
from tests.worker.test_pausing import KINDS, ON_SQLITE, online
from worker.loading import Weights, load_tokenizer

__all__ = ["online"]  # a fixture


@ON_SQLITE
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_reward_model_of_other_tokens_is_refused(project: Project, online: dict[str, Any], kind: str) -> None:
    folder = settings().folder("tiny", "pausing", "reward")
    tokenizer = load_tokenizer(Weights(str(folder)))
    tokenizer.add_tokens(["§§"])
    tokenizer.save_pretrained(folder)
    run = do(project.id, kind=kind, **{**KINDS[kind], **online, "held_out": None, "is_paused_at_turn": False})
    assert run.status == "failed"
    assert run.error is not None and run.error.startswith("The reward model reads other tokens than the policy writes")
