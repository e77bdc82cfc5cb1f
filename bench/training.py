"""Training beside its peers: each a process of its own, taking turns on the same data, seeds and model.

    python -m bench.training [--only ppo sft reward dpo] [--turns 7] [--peer | --peer-python PATH] [--gpu]

PPO stands beside TRL 1.12's PPOTrainer (bench/peer.py); SFT, reward model and DPO beside a plain script with TRL 1.16,
which logs every ten steps and stores nothing, while ours is a run with its curves in a database. The model is the real
Llama of 260,000 weights where PREFLAB_SHARED_DATA has it, else random weights in the demo base's shape; --gpu takes
random weights in Llama-3.1-8B's shape, LoRA and bfloat16. The first step (compiling, caches, data) is no one's; then
turns of some steps, ours and the peer's by turns, so that a busy machine is busy for both. Printed are medians over the
turns, in wall and in CPU seconds; a ratio above 1 means that ours is faster.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from app.prompts.demo_corpus import list_prompts
from bench.peer import peer_command, peer_python
from bench.training_base import SHAPES, real_base, write_random_base
from bench.turns import Player
from worker.loading import Weights, encode_prompt, load_tokenizer, render_prompt

OFFLINE = ("sft", "reward", "dpo")
LIMIT = 0.98  # of a plain script's speed
LIMIT_MS = 2.0  # of our callbacks in a step on a CPU
CPU = {"rollouts": 64, "texts": 64, "epochs": 4, "new": 48, "rank": 0, "dtype": "float32"}
GPU = {"rollouts": 32, "texts": 8, "epochs": 1, "new": 128, "rank": 16, "dtype": "bfloat16"}
STEPS = 10  # of a turn; an iteration of PPO is a turn by itself

Found = dict[str, float]


def middle(turns: list[Found], name: str, steps: int = 1) -> float:
    """The median over turns of one figure, a step."""
    return median(turn.get(name, 0.0) for turn in turns) / steps


def take_turns(ours: Player, peer: Player, n: int, steps: int) -> tuple[list[Found], list[Found]]:
    """n turns each; who begins changes every turn."""
    mine: list[Found] = []
    theirs: list[Found] = []
    for turn in range(n):
        order = [(ours, mine), (peer, theirs)]
        for player, found in order if turn % 2 == 0 else reversed(order):
            found.append(player.turn(steps))
    ours.end()
    peer.end()
    return mine, theirs


def play(given: dict[str, Any], log: Path) -> Player:
    """One of our own processes."""
    return Player([sys.executable, "-m", "bench.training_player", json.dumps(given)], log)


def compare_ppo(base: Weights, asked: argparse.Namespace, folder: Path, sizes: dict[str, Any]) -> None:
    """Our PPO beside TRL 1.12's."""
    tokenizer = load_tokenizer(base)
    rows = [encode_prompt(tokenizer, render_prompt(tokenizer, row["messages"])) for row in list_prompts()]
    given = {**sizes, "prompts": rows[: sizes["rollouts"]], "updates": 10_000}
    ours = play({**given, "who": "ours", "kind": "ppo", "base": [base.place, base.manifest_sha256]}, folder / "a")
    command = peer_command(peer_python(asked.peer_python), {**given, "base": base.place, "value": "full"})
    mine, theirs = take_turns(ours, Player(command, folder / "b"), asked.turns, 1)
    print(
        f"{'PPO':8}{'':>9}{'tokens/s':>10}{'samples/s':>11}{'CPU s':>8}{'rollout CPU s':>15}{'tokens':>8}{'forward':>9}"
    )
    rates = []
    for name, turns in (("ours", mine), ("TRL 1.12", theirs)):
        tokens, samples = middle(turns, "tokens"), middle(turns, "samples")
        rate = (
            median(turn["tokens"] / turn["rollout_wall"] for turn in turns),
            median(turn["samples"] / turn["wall"] for turn in turns),
            median(turn["tokens"] / turn["rollout_cpu"] for turn in turns),
            median(turn["samples"] / turn["cpu"] for turn in turns),
        )
        rates.append(rate)
        print(
            f"{'':8}{name:>9}{rate[0]:10.0f}{rate[1]:11.1f}{middle(turns, 'cpu'):8.2f}"
            f"{middle(turns, 'rollout_cpu'):15.2f}{tokens:8.0f}{middle(turns, 'forward_tokens'):9.0f}"
        )
        assert samples == sizes["rollouts"]
    for name, place in (("rollout tokens/s", 0), ("samples/s", 1), ("tokens per CPU second", 2),
                        ("samples per CPU second", 3)):  # fmt: skip
        ratio = rates[0][place] / rates[1][place]
        print(f"{'':8}{name}: {ratio:.2f} of TRL 1.12's  {'PASS' if ratio >= 1 else 'FAIL'}", flush=True)


def compare_offline(kind: str, base: Weights, asked: argparse.Namespace, folder: Path) -> None:
    """One of our trainers beside the plain script."""
    given = {
        "kind": kind, "base": [base.place, base.manifest_sha256], "texts": 16, "length": 256, "rows": 192,
    }  # fmt: skip
    ours, peer = (play({**given, "who": who}, folder / f"{kind}-{who}") for who in ("ours", "plain"))
    mine, theirs = take_turns(ours, peer, asked.turns, STEPS)
    wall, cpu = (median(t[n] / m[n] for m, t in zip(mine, theirs, strict=True)) for n in ("wall", "cpu"))
    tokens = [sum(turn["forward_tokens"] for turn in turns) for turns in (mine, theirs)]
    ms = 1000 * (middle(mine, "log_cpu", STEPS) + middle(mine, "callbacks_cpu", STEPS))
    own, plain = (1000 * middle(turns, "cpu", STEPS) for turns in (mine, theirs))
    verdict = "PASS" if cpu >= LIMIT and ms <= LIMIT_MS else "FAIL"
    print(
        f"{kind:8}{own:12.1f}{plain:12.1f}{cpu:9.3f}{wall:9.3f}{tokens[0] / tokens[1]:9.2f}{ms:14.2f}   {verdict}",
        flush=True,
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=["ppo", *OFFLINE], default=["ppo", *OFFLINE])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--peer", action="store_true", help="PPO too; the peer's environment is made if need be")
    parser.add_argument("--peer-python", type=Path, help="PPO too; a Python that has trl 1.12")
    parser.add_argument("--gpu", action="store_true", help="random weights in Llama-3.1-8B's shape")
    asked = parser.parse_args()
    if asked.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs CUDA, and there is none here")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        real = None if asked.gpu else real_base()
        shape = "llama-3.1-8b" if asked.gpu else "tiny"
        base = real or write_random_base(folder / "base", SHAPES[shape], "bfloat16" if asked.gpu else "float32")
        where = torch.cuda.get_device_name() if asked.gpu else "CPU, one thread"
        print(f"{'stories260k' if real else 'random weights, ' + shape}; {where}; {asked.turns} turns each", flush=True)
        if "ppo" in asked.only and (asked.peer or asked.peer_python):
            compare_ppo(base, asked, folder, GPU if asked.gpu else CPU)
        kinds = [kind for kind in OFFLINE if kind in asked.only]
        if kinds:
            print(f"{'':8}{'ours, CPU ms':>12}{'plain':>12}{'CPU':>9}{'wall':>9}{'tokens':>9}{'callbacks ms':>14}")
        for kind in kinds:
            compare_offline(kind, base, asked, folder)


if __name__ == "__main__":
    main()
