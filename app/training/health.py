"""Plain-language notes on a training run, each with the numbers it rests on. Rules of thumb, worded as such.

A note says what is seen, whether it matters, and what one would try. The thresholds are conventions of practice, not
theorems: KL and clipping after Schulman et al. 2017 and Huang et al. 2024 (2403.17031), falling log-probabilities of
chosen texts after Razin et al. 2024 (2410.08847) and Pal et al. 2024 (2402.13228), over-optimisation after Gao et al.
2022 (2210.10760).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from app.training.stopping import find_best

Points = Sequence[tuple[int, float | None]]  # (step, value); None: not finite
ONLINE = {"ppo", "grpo", "rloo"}
PAIRED = {"dpo", "simpo", "kto"}
ENOUGH = 8  # points below which a curve says nothing
# AdamW moves a weight by about the learning rate. In bfloat16 (8 bits of significand) a weight of 2^-6 to 2^-5, as is
# usual, has its next number 2^-13 further on: less than half of that rounds away.
ROUNDED_AWAY = 2**-14


@dataclass(frozen=True)
class Note:
    """One observation: how much it matters, what is seen and what to do, and the points it rests on."""

    level: Literal["look", "act"]
    text: str
    evidence: tuple[tuple[str, int, float], ...]


def write_notes(
    kind: str, recipe: Mapping[str, Any], curves: Mapping[str, Points], n_repeated: int = 0,
    held_out: Mapping[str, Any] | None = None,
) -> list[Note]:  # fmt: skip
    """What a practitioner would say of these curves; the gravest first.

    `n_repeated`: rows equal to an earlier one; `held_out`: what was measured of a reward model at its end.
    """
    patience = int(recipe.get("patience") or 0)
    found: list[Note | None] = [_not_finite(curves), _rounded_away(recipe), _too_hot(kind, curves)]
    found.append(_stopped(curves, patience) if patience else _dev_rising(kind, curves))
    if kind in PAIRED:
        found.append(_chosen_falling(curves))
    if kind in ONLINE:
        found += [_kl_running(recipe, curves), _length_drift(curves), _saturated(curves), _unended(curves)]
    found += [_diverging(curves), _repeating(curves)]
    if kind == "ppo":
        found += [_value_idle(curves), _clipping(curves)]
    if kind in {"grpo", "rloo"}:
        found.append(_no_spread(curves))
    found += [_unlike_judge(held_out, curves) if held_out else None, _repeated(n_repeated)]
    return sorted((note for note in found if note is not None), key=lambda note: note.level != "act")


def _finite(curves: Mapping[str, Points], name: str) -> list[tuple[int, float]]:
    return [(step, value) for step, value in curves.get(name, ()) if value is not None]


def _ends(points: Sequence[tuple[int, float]], share: float = 0.25) -> tuple[float, float]:
    """Means of the first and the last quarter."""
    n = max(2, int(len(points) * share))
    return fmean(value for _, value in points[:n]), fmean(value for _, value in points[-n:])


def _at(name: str, *points: tuple[int, float]) -> tuple[tuple[str, int, float], ...]:
    return tuple((name, step, value) for step, value in points)


def _not_finite(curves: Mapping[str, Points]) -> Note | None:
    for name in ("loss", "policy_loss", "value_loss", "dev_loss", "grad_norm"):
        lost = [step for step, value in curves.get(name, ()) if value is None]
        if lost:
            text = (
                f"The {name.replace('_', ' ')} was not finite from step {lost[0]} on. What was trained after that is "
                "not worth keeping: lower the learning rate, or use float32."
            )
            return Note("act", text, ())
    return None


def _rounded_away(recipe: Mapping[str, Any]) -> Note | None:
    """All weights in bfloat16, and a learning rate whose steps are too small for it."""
    lr = float(recipe.get("lr") or 0)
    if recipe.get("dtype") != "bfloat16" or recipe.get("is_lora") or lr >= ROUNDED_AWAY:
        return None
    text = (
        f"All weights are trained in bfloat16 at a learning rate of {lr:g}, and a step of that size rounds away where "
        "a weight is larger than about five hundred steps: many of them never move, however long it trains. Choose "
        "LoRA, whose adapters are float32, or float32."
    )
    return Note("act", text, ())


def _too_hot(kind: str, curves: Mapping[str, Points]) -> Note | None:
    """Gradients that burst, or a loss that ends above where it began."""
    norms = _finite(curves, "grad_norm")
    usual = median(value for _, value in norms) if len(norms) >= ENOUGH else 0.0
    bursts = [point for point in norms if usual and point[1] > 10 * usual]
    if len(bursts) >= max(2, len(norms) // 20):
        text = (
            f"The gradient norm burst in {len(bursts)} of {len(norms)} steps (over ten times its median of "
            f"{usual:.3g}). The learning rate is likely too high: try a third of it, or a longer warm-up."
        )
        return Note("act", text, _at("grad_norm", bursts[0], bursts[-1]))
    loss = _finite(curves, "loss")
    if kind in ONLINE or len(loss) < ENOUGH:
        return None
    first, last = _ends(loss)
    if last - first > max(0.02, 0.1 * abs(first)):  # the robust loss may lie below zero
        text = (
            f"The training loss rose from {first:.3g} to {last:.3g}: the learning rate is likely too high. Try a third."
        )
        return Note("act", text, _at("loss", loss[0], loss[-1]))
    return None


def _dev_rising(kind: str, curves: Mapping[str, Points]) -> Note | None:
    dev = _finite(curves, "dev_loss")
    if len(dev) < 4:
        return None
    best = min(dev, key=lambda point: point[1])
    last = dev[-1]
    if last[1] - best[1] <= max(0.01, 0.03 * abs(best[1])) or best[0] == last[0]:
        return None
    text = f"The loss on the dev split was lowest at step {best[0]} ({best[1]:.3g}) and has risen to {last[1]:.3g}. "
    accuracy = _finite(curves, "dev_accuracy")
    if accuracy:
        then = min(accuracy, key=lambda point: abs(point[0] - best[0]))
        if accuracy[-1][1] >= then[1] - 0.01:
            text += (
                f"Accuracy there stands ({then[1]:.2f}, now {accuracy[-1][1]:.2f}): it grows over-sure rather than "
                "wrong. For a reward model that matters, since PPO follows the size of its scores; for the policy less."
            )
            return Note("look", text, _at("dev_loss", best, last) + _at("dev_accuracy", then, accuracy[-1]))
    text += "It is learning its training rows by heart: stop near that step, take fewer epochs, or more data."
    return Note("act", text, _at("dev_loss", best, last))


def _stopped(curves: Mapping[str, Points], patience: int) -> Note | None:
    """That it stopped early, and which weights were kept."""
    best, has_stopped = find_best(curves.get("dev_loss", ()), patience)
    if not has_stopped or best.step < 0:
        return None
    kept = "those it began with" if best.step == 0 else f"those of step {best.step}"
    text = (
        f"It stopped early, after step {best.last}: the loss on the dev split was lowest at step {best.step} "
        f"({best.loss:.3g}) and no lower in the next {patience} measurements. The weights kept are {kept}."
    )
    return Note("look", text, _at("dev_loss", (best.step, best.loss)))


def _unlike_judge(held_out: Mapping[str, Any], curves: Mapping[str, Points]) -> Note | None:
    """A reward model whose interval leaves room for guessing, or for reading nothing but lengths."""
    found, over, rule = held_out["accuracy"], held_out["over_length"], held_out["by_length"]["value"]
    step = max((step for points in curves.values() for step, _ in points), default=0)
    said = f"{found['value']:.2f} of {found['n']:,} held-out rows [{found['low']:.2f}, {found['high']:.2f}]"
    if found["low"] <= 0.5:
        text = (
            f"It is not shown to reproduce the judge: it prefers the chosen in {said}, which guessing may give too. "
            "What follows it may follow noise: judge more pairs, look at the judge’s own consistency, or train longer."
        )
        return Note("act", text, _at("held_out_accuracy", (step, found["value"])))
    if over["low"] <= 0:
        text = (
            f"It is not shown to read more than length: it prefers the chosen in {said}, and the rule “prefer the "
            f"{held_out['length_rule']}” in {rule:.2f}. A policy trained on it may learn that alone: compare texts of "
            "like length, or judge more pairs whose preferred side is not the one that the rule takes."
        )
        return Note("act", text, _at("held_out_accuracy", (step, found["value"])) + _at("length_rule", (step, rule)))
    return None


def _chosen_falling(curves: Mapping[str, Points]) -> Note | None:
    chosen, rejected = _finite(curves, "log_prob_chosen"), _finite(curves, "log_prob_rejected")
    if len(chosen) < ENOUGH or len(rejected) < ENOUGH:
        return None
    first, last = _ends(chosen)
    fall, other = first - last, _ends(rejected)[0] - _ends(rejected)[1]
    if fall < max(2.0, 0.05 * abs(first)):
        return None
    text = (
        f"Chosen completions became less likely ({first:.1f} to {last:.1f} nats); rejected ones fell by {other:.1f}. "
        "The margin grows because both fall, which is how this loss works and no harm by itself. It matters when the "
        "probability goes to texts nobody wrote: look at samples and at a benchmark, or add a weight on the SFT term."
    )
    return Note("look", text, _at("log_prob_chosen", chosen[0], chosen[-1]) + _at("log_prob_rejected", rejected[-1]))


def _kl_running(recipe: Mapping[str, Any], curves: Mapping[str, Points]) -> Note | None:
    kl = _finite(curves, "kl")
    if len(kl) < ENOUGH:
        return None
    last = _ends(kl)[1]
    target = recipe.get("kl_target")
    middle = fmean(value for _, value in kl[len(kl) // 3 : 2 * len(kl) // 3])
    is_off_target = target is not None and last > 2 * float(target)
    if not is_off_target and not (last > 10 and last > 2 * max(middle, 0.1)):
        return None
    aim = (
        f", twice its target of {target:g} and more"
        if is_off_target and target is not None
        else " and is still climbing"
    )
    text = (
        f"The KL to the reference has reached {last:.1f} nats a completion{aim}. Far from the reference a reward model "
        "knows little: raise the KL coefficient, set a target, or stop earlier."
    )
    return Note("act", text, _at("kl", kl[0], kl[-1]))


@dataclass(frozen=True)
class Turn:
    """Where what only watches began to fall while what trains still rose: each as (step, value)."""

    best: tuple[int, float]  # the watcher's highest point
    then: tuple[int, float]  # the proxy nearest to it
    watcher: tuple[int, float]  # both at the end
    proxy: tuple[int, float]


def find_turn(curves: Mapping[str, Points]) -> Turn | None:
    """What trains goes up while what only watches goes down: Gao et al.'s over-optimisation. None: not seen."""
    proxy = _finite(curves, "dev_reward") or _finite(curves, "dev_accuracy")
    watcher = _finite(curves, "dev_held_out")
    if len(proxy) < 4 or len(watcher) < 4:
        return None
    best = max(watcher, key=lambda point: point[1])
    then = min(proxy, key=lambda point: abs(point[0] - best[0]))
    spread = best[1] - min(value for _, value in watcher)
    fall = best[1] - watcher[-1][1]
    if best[0] == watcher[-1][0] or spread <= 0 or fall < 0.25 * spread or proxy[-1][1] <= then[1]:
        return None
    return Turn(best, then, watcher[-1], proxy[-1])


def _diverging(curves: Mapping[str, Points]) -> Note | None:
    turn = find_turn(curves)
    if turn is None:
        return None
    text = (
        f"The held-out scorer liked step {turn.best[0]} best ({turn.best[1]:.3g}, now {turn.watcher[1]:.3g}) "
        f"while what trains went on rising ({turn.then[1]:.3g} to {turn.proxy[1]:.3g}). From there the run may please "
        "its reward only: compare samples of both steps, and let people grade some."
    )
    return Note("act", text, _at("dev_held_out", turn.best, turn.watcher))


def _repeating(curves: Mapping[str, Points]) -> Note | None:
    points = _finite(curves, "dev_repetition")
    if len(points) < 2 or points[-1][1] < 0.2 or points[-1][1] < points[0][1] + 0.1:
        return None
    text = (
        f"Samples repeat themselves: {points[-1][1]:.0%} of their phrases of four words stood in the same text before "
        f"({points[0][1]:.0%} at the start)."
    )
    return Note("act", text, _at("dev_repetition", points[0], points[-1]))


def _length_drift(curves: Mapping[str, Points]) -> Note | None:
    length = _finite(curves, "length")
    if len(length) < ENOUGH:
        return None
    first, last = _ends(length)
    if first <= 0 or 0.67 <= last / first <= 1.5:
        return None
    way = "longer" if last > first else "shorter"
    text = (
        f"Completions grew {way}: {first:.0f} tokens at first, {last:.0f} now. See that length is not what is rewarded "
        "(the Judge Card's line on length tells), before reading a win rate."
    )
    return Note("look", text, _at("length", length[0], length[-1]))


def _saturated(curves: Mapping[str, Points]) -> Note | None:
    """Reward stands while KL still grows: movement that pays for nothing."""
    reward, kl = _finite(curves, "reward"), _finite(curves, "kl")
    if len(reward) < 3 * ENOUGH or len(kl) < 3 * ENOUGH:
        return None
    third = len(reward) // 3
    middle, last = fmean(v for _, v in reward[third : 2 * third]), fmean(v for _, v in reward[-third:])
    spread = max(v for _, v in reward) - min(v for _, v in reward)
    kl_middle, kl_last = fmean(v for _, v in kl[third : 2 * third]), fmean(v for _, v in kl[-third:])
    if spread <= 0 or last - middle > 0.05 * spread or kl_last < kl_middle * 1.15 or kl_last < 0.5:
        return None
    text = (
        f"The reward has stood near {last:.2f} for the last third while the KL went from {kl_middle:.1f} to "
        f"{kl_last:.1f}: it moves away from the reference for nothing. Fewer steps would give the same."
    )
    return Note("look", text, _at("reward", reward[third], reward[-1]) + _at("kl", kl[third], kl[-1]))


def _unended(curves: Mapping[str, Points]) -> Note | None:
    ended = _finite(curves, "ended") or [(step, 1 - value) for step, value in _finite(curves, "unended")]
    if len(ended) < 2:
        return None
    last = _ends(ended)[1]
    if last >= 0.7:
        return None
    text = (
        f"Only {last:.0%} of completions come to an end within the tokens allowed. The others are scored as cut texts: "
        "allow more new tokens, or put a penalty on a missing end."
    )
    return Note("act", text, _at("ended", ended[-1]))


def _value_idle(curves: Mapping[str, Points]) -> Note | None:
    explained = _finite(curves, "explained_variance")
    if len(explained) < 2 * ENOUGH:
        return None
    last = _ends(explained)[1]
    if last >= 0.1:
        return None
    text = (
        f"The value model explains {max(last, 0):.0%} of the returns' variance after {explained[-1][0]} iterations: "
        "advantages are mostly noise. Raise its learning rate or the passes over each rollout."
    )
    return Note("act", text, _at("explained_variance", explained[0], explained[-1]))


def _clipping(curves: Mapping[str, Points]) -> Note | None:
    clipped = _finite(curves, "clip_fraction")
    if len(clipped) < ENOUGH:
        return None
    last = _ends(clipped)[1]
    if last < 0.3:
        return None
    text = (
        f"{last:.0%} of tokens are clipped: each update moves the policy further than its rollouts can tell. Lower the "
        "learning rate, or take fewer passes over each rollout."
    )
    return Note("act", text, _at("clip_fraction", clipped[0], clipped[-1]))


def _no_spread(curves: Mapping[str, Points]) -> Note | None:
    idle = _finite(curves, "groups_without_spread")
    if len(idle) < ENOUGH:
        return None
    last = _ends(idle)[1]
    if last < 0.5:
        return None
    text = (
        f"In {last:.0%} of groups every completion has the same reward, so that they teach nothing. Larger groups, a "
        "higher temperature, or a reward with more steps would use what is sampled."
    )
    return Note("look", text, _at("groups_without_spread", idle[0], idle[-1]))


def _repeated(n: int) -> Note | None:
    if not n:
        return None
    text = (
        f"{n:,} training {'row is' if n == 1 else 'rows are'} equal to an earlier one: those labels count twice. "
        "Look at the prompt set's duplicates."
    )
    return Note("look", text, ())
