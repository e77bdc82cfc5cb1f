"""The rounds behind each arm, beside what samples anew as it trains: what was new in each of them."""

from dataclasses import dataclass

from sqlmodel import Session

from app.report.arms import ReportArm
from app.training.rounds import Round, read_rounds

SAMPLES_ANEW = {"ppo", "grpo", "rloo"}


@dataclass(frozen=True)
class ArmRounds:
    """An arm with the rounds of its line; `fresh`: what it sampled and was rewarded for while it trained."""

    arm: ReportArm
    rounds: list[Round]
    fresh: str


def read_arm_rounds(session: Session, arms: list[ReportArm]) -> list[ArmRounds]:
    """Every arm that labels went into, where at least one had a second round; otherwise there is nothing to tell."""
    found = [
        ArmRounds(arm, rounds, arm.data if arm.method in SAMPLES_ANEW else "")
        for arm in arms
        if not arm.in_context and (rounds := read_rounds(session, arm.checkpoint))
    ]
    return found if any(len(one.rounds) > 1 for one in found) else []
