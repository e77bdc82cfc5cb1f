"""Peak memory of PPO beside DPO on the same base, tokens and number format, and beside TRL 1.12's PPOTrainer.

    python -m bench.memory [--shape small] [--dtype float32 bfloat16] [--texts 8] [--length 128] [--rank 8]
        [--peer | --peer-python PATH]

A step sees the same texts of the same length in all of them: half as many pairs for DPO, one minibatch for PPO, whose
rollout is four minibatches. Each runs in a process of its own: three steps of DPO, reference included, and an iteration
of PPO with rollout, four adapters on one base and four steps. On a CPU bytes are counted storage by storage
(bench/held.py); on CUDA `max_memory_allocated` is read. 8-bit and 4-bit need CUDA and bitsandbytes.

The peer runs in an environment of its own (made in the cache folder by --peer, or named by --peer-python), with LoRA on
its policy, as its example script does: there the value model and the reward model are separate copies. "best" gives its
value model LoRA as well, which no script of TRL's does.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from app.training.recipes import DpoRecipe, PpoRecipe, RewardRecipe
from bench.held import Bytes, Held, read_bytes
from bench.peer import peer_python, peer_script
from bench.training_base import SHAPES, long_preferences, write_random_base
from worker.dpo import make_trainer
from worker.loading import Weights, load_tokenizer
from worker.ppo import Ppo
from worker.ppo_models import LoraModels
from worker.reward import make_classifier
from worker.saving import save_folder

LIMITS = {"DPO": 1.10, "DPO in 4-bit": 1.20, "TRL 1.12": 0.35}
MINIBATCHES = 4  # of a rollout


def write_reward_adapter(folder: Path, base: Weights, rank: int, dtype: str) -> Weights:
    """A LoRA reward model on the base, as a training run stores it."""
    model = make_classifier(base, RewardRecipe(start=1, snapshot=1, is_lora=True, lora_rank=rank, dtype=dtype), 1)
    place, sha256 = save_folder(folder, model.save_pretrained, {"base_sha256": base.manifest_sha256})
    return Weights(str(place), sha256, base)


def measure_dpo(base: Weights, texts: int, length: int, rank: int, dtype: str, folder: Path) -> Bytes:
    """Three steps of DPO with LoRA; a step is texts / 2 pairs."""
    recipe = DpoRecipe(
        start=1, reference=1, snapshot=1, is_lora=True, lora_rank=rank, dtype=dtype, batch_size=texts // 2,
        max_length=length, max_steps=3,
    )  # fmt: skip
    trainer = make_trainer(recipe, 1, base, long_preferences(texts), folder)
    held = Held([*trainer.model.parameters(), *trainer.model.buffers()])
    with held:
        trainer.train()
    return read_bytes([trainer.model], trainer.optimizer, held.highest)


def measure_ppo(base: Weights, reward: Weights, texts: int, length: int, rank: int, dtype: str) -> Bytes:
    """One iteration of PPO with LoRA: a rollout of several minibatches of `texts` each."""
    recipe = PpoRecipe(
        start=1, reference=1, prompt_set=1, reward=1, is_lora=True, lora_rank=rank, dtype=dtype, iterations=1,
        rollouts=MINIBATCHES * texts, minibatches=MINIBATCHES, ppo_epochs=1, max_new_tokens=length - length // 4,
    )  # fmt: skip
    models = LoraModels(base, reward, rank, dtype)
    ppo = Ppo(recipe, 1, models, load_tokenizer(base))
    modules = [models.net, models.value_head]
    held = Held([models.score, *(one for m in modules for one in (*m.parameters(), *m.buffers()))])
    with held:
        ppo.iterate(0, [list(range(300, 300 + length // 4))] * recipe.rollouts, lambda: None)
    return read_bytes(modules, ppo.optimizer, held.highest)


def measure(name: str, base: Weights, asked: argparse.Namespace, dtype: str) -> Bytes:
    """One method in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        if name == "dpo":
            return measure_dpo(base, asked.texts, asked.length, asked.rank, dtype, Path(scratch))
        reward = write_reward_adapter(Path(scratch) / "reward", base, asked.rank, dtype)
        return measure_ppo(base, reward, asked.texts, asked.length, asked.rank, dtype)


def in_own_process(name: str, base: Weights, asked: argparse.Namespace, dtype: str) -> Bytes:
    """The same in a fresh process, so that nothing of another measurement is held."""
    given = ["--only", name, "--base", base.place, base.manifest_sha256, "--dtype", dtype]
    for key in ("texts", "length", "rank"):
        given += [f"--{key}", str(getattr(asked, key))]
    done = subprocess.run([sys.executable, "-m", "bench.memory", *given], stdout=subprocess.PIPE, check=True)
    return Bytes(**json.loads(done.stdout.splitlines()[-1]))


def measure_peer(python: Path, value: str, base: Weights, asked: argparse.Namespace, dtype: str) -> Bytes:
    """One update of TRL 1.12's PPOTrainer with the same minibatches."""
    given = {
        "base": base.place, "dtype": dtype, "rank": asked.rank, "value": value, "texts": asked.texts,
        "rollouts": MINIBATCHES * asked.texts, "prompt": asked.length // 4, "new": asked.length - asked.length // 4,
        "updates": 1, "epochs": 1, "is_measured": True,
    }  # fmt: skip
    return Bytes(**json.loads(peer_script(python, given).splitlines()[-1]))


def line(name: str, found: Bytes, of: str = "", ratio: float = 0.0, limit: float = 0.0) -> str:
    """One row of the table, in MiB."""
    parts = "".join(f"{n / 2**20:10.1f}" for n in (found.weights, found.gradients, found.optimizer, found.peak))
    verdict = f"   {ratio:5.2f} of {of}, limit {limit:.2f}  {'PASS' if ratio <= limit else 'FAIL'}" if of else ""
    return f"{name:26}{parts}{verdict}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--only", choices=["dpo", "ppo"])
    parser.add_argument("--base", nargs=2)
    asked = parser.parse_args()
    if asked.only:
        found = measure(asked.only, Weights(*asked.base), asked, asked.dtype[0])
        print(json.dumps(found.as_dict()))
        return
    python = peer_python(asked.peer_python) if asked.peer or asked.peer_python else None
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, counted"
    print(f"{asked.shape}, LoRA rank {asked.rank}, {asked.texts} texts of {asked.length} tokens a step; {where}; MiB")
    print(f"{'':26}{'weights':>10}{'gradients':>10}{'optimizer':>10}{'peak':>10}")
    with tempfile.TemporaryDirectory() as folder:
        stored = "bfloat16" if asked.shape == "llama-3.1-8b" else "float32"
        base = write_random_base(Path(folder) / "base", SHAPES[asked.shape], stored)
        for dtype in asked.dtype:
            compare(base, asked, dtype, python)


def compare(base: Weights, asked: argparse.Namespace, dtype: str, python: Path | None) -> None:
    """One number format: DPO, PPO and, where there is one, the peer."""
    dpo, ppo = (in_own_process(name, base, asked, dtype) for name in ("dpo", "ppo"))
    limit = LIMITS["DPO in 4-bit" if dtype == "4-bit" else "DPO"]
    print(line(f"DPO {dtype}", dpo), line(f"PPO {dtype}", ppo, "DPO", ppo.peak / dpo.peak, limit), sep="\n", flush=True)
    settings: list[tuple[str, str]] = [("full", "TRL 1.12"), ("lora", "TRL 1.12 best")] if python else []
    for value, name in settings:
        assert python is not None
        peer = measure_peer(python, value, base, asked, dtype)
        given: list[Any] = [name, ppo.peak / peer.peak, LIMITS["TRL 1.12"]]
        print(line(f"{name} {dtype}", peer, *given), flush=True)


if __name__ == "__main__":
    main()
