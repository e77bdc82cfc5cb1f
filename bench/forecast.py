"""The training form's memory forecast beside the bytes that training holds, by method, all weights and LoRA.

    python -m bench.forecast [--shape tiny small] [--texts 8] [--length 128] [--rank 8] [--dtype float32] [--only sft …]

Each method runs in a process of its own: three steps (one iteration of four minibatches for PPO) on texts as long as
`--length`, counted storage by storage on a CPU (bench/held.py), read from the allocator on CUDA. The forecast is
told the same batch and length. A ratio above 1 is a forecast above what was held.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from app.training.forecast import ONLINE, Forecast, Method, forecast_memory
from app.training.recipes import (
    DpoRecipe,
    GrpoRecipe,
    KtoRecipe,
    PpoRecipe,
    RewardRecipe,
    RlooRecipe,
    SftRecipe,
    SimpoRecipe,
)
from bench.held import Bytes, Held, read_bytes
from bench.training_base import LONG, SHAPES, write_random_base
from worker import dpo, grpo, kto, reward, sft
from worker.llm import encode_parts
from worker.loading import Weights, load_tokenizer
from worker.ppo import Ppo
from worker.ppo_models import FullModels, LoraModels
from worker.preferences import Preferences
from worker.rl_prompts import RlPrompt
from worker.saving import save_folder

METHODS: tuple[Method, ...] = ("sft", "reward", "bi_encoder", "dpo", "simpo", "kto", "ppo", "grpo", "rloo")
LIMITS = 0.8, 1.5  # forecast over counted
MINIBATCHES = 4  # of a PPO rollout
STEPS = 3
PAIRED = {"reward", "bi_encoder", "dpo", "simpo"}  # a row is two texts


class _Quiet:
    """What a trainer tells while it is measured: nobody listens."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def measure(
    method: Method, base: Weights, texts: int, length: int, rank: int | None, dtype: str, folder: Path
) -> Bytes:
    """Bytes of a few steps of `texts` texts each; `rank` of LoRA, None for all weights."""
    given: dict[str, Any] = {"start": 1, "is_lora": rank is not None, "lora_rank": rank or 16, "dtype": dtype}
    if method == "ppo":
        return _measure_ppo(base, texts, length, given, folder)
    if method in ("grpo", "rloo"):
        trainer = _group_trainer(method, base, texts, length, given, folder)
    else:
        rows = texts // 2 if method in PAIRED else texts
        given |= {"snapshot": 1, "batch_size": rows, "max_length": length, "max_steps": STEPS, "save_every": 1000}
        trainer = _offline_trainer(method, base, given, texts, folder)
    models = [trainer.model, *([trainer.ref_model] if getattr(trainer, "ref_model", None) is not None else [])]
    held = Held([one for model in models for one in (*model.parameters(), *model.buffers())])
    with held:
        trainer.train()
    return read_bytes(models, trainer.optimizer, held.highest)


def exact_preferences(tokenizer: Any, n: int, length: int) -> Preferences:
    """Rows that differ, whose both texts have `length` tokens, or as few less as words allow."""
    ids = tokenizer(LONG * 60)["input_ids"]
    rows = []
    for place in range(n):
        asked = [{"role": "user", "content": f"Tell me {place}. "}]
        row: dict[str, Any] = {"prompt": asked}
        for side, start in (("chosen", f"Yes {place}. "), ("rejected", f"No {place}. ")):
            n_more, text = length, ""
            while n_more == length or sum(map(len, encode_parts(tokenizer, asked, text))) > length:
                n_more -= 1
                text = start + tokenizer.decode(ids[:n_more])
            row[side] = [{"role": "assistant", "content": text}]
        rows.append(row)
    return Preferences(rows, [])


def _offline_trainer(method: Method, base: Weights, given: dict[str, Any], texts: int, folder: Path) -> Any:
    rows = exact_preferences(load_tokenizer(base), texts, given["max_length"])
    if method in ("dpo", "simpo"):
        paired = DpoRecipe(**given, reference=1) if method == "dpo" else SimpoRecipe(**given)
        return dpo.make_trainer(paired, 1, base, rows, folder)
    recipe: Any
    if method == "sft":
        recipe = SftRecipe(**given)
        fit: Any = sft.fit_sft
    elif method == "kto":
        recipe, fit = KtoRecipe(**given, reference=1), kto.fit_kto
    else:
        kind = "bi_encoder" if method == "bi_encoder" else "classifier"
        recipe, fit = RewardRecipe(**given, architecture=kind), reward.fit_reward
    return _caught(lambda: fit(recipe, 1, base, rows, folder, _Quiet()))


def _caught(fit: Any) -> Any:
    """The trainer that a fit function makes, before it trains."""
    from worker import trl_run

    made: list[Any] = []

    def keep(trainer: Any, *_: Any, **__: Any) -> dict[str, float]:
        made.append(trainer)
        return {}

    train, trl_run.run_trainer = trl_run.run_trainer, keep
    try:
        fit()
    finally:
        trl_run.run_trainer = train
    return made[0]


def _asked(tokenizer: Any, n: int) -> RlPrompt:
    ids = tokenizer(LONG * 20)["input_ids"][:n]
    return RlPrompt([{"role": "user", "content": tokenizer.decode(ids)}], ids)


def _group_trainer(method: Method, base: Weights, texts: int, length: int, given: dict[str, Any], folder: Path) -> Any:
    group = min(4, texts)
    kind = GrpoRecipe if method == "grpo" else RlooRecipe
    recipe = kind(
        **given, reference=1, prompt_set=1, steps=STEPS, prompts_per_step=texts // group, group_size=group,
        max_new_tokens=length - length // 4, save_every=1000,
    )  # fmt: skip
    prompts = [_asked(load_tokenizer(base), length // 4)] * texts
    return grpo.make_trainer(
        recipe, 1, base, prompts, lambda completions, **_: [float(i) for i, _ in enumerate(completions)], folder,
        lambda: None,
    )  # fmt: skip


def _measure_ppo(base: Weights, texts: int, length: int, given: dict[str, Any], folder: Path) -> Bytes:
    recipe = PpoRecipe(
        **given, reference=1, prompt_set=1, reward=1, iterations=1, rollouts=MINIBATCHES * texts,
        minibatches=MINIBATCHES, ppo_epochs=1, max_new_tokens=length - length // 4,
    )  # fmt: skip
    scorer = reward.make_classifier(base, RewardRecipe(**given, snapshot=1), 1)
    known = {"base_sha256": base.manifest_sha256} if recipe.is_lora else {}
    place, sha256 = save_folder(folder / "reward", lambda at: _save(scorer, base, at), known)
    stored = Weights(str(place), sha256, base if recipe.is_lora else None)
    models: Any
    if recipe.is_lora:
        models = LoraModels(base, stored, recipe.lora_rank, recipe.dtype)
        modules = [models.net, models.value_head]
    else:
        models = FullModels(base, stored, recipe.dtype)
        modules = [models.policy, models.reference, models.reward, models.value_body, models.value_head]
    ppo = Ppo(recipe, 1, models, load_tokenizer(base))
    held = Held([one for m in modules for one in (*m.parameters(), *m.buffers())])
    with held:
        ppo.iterate(0, [list(range(300, 300 + length // 4))] * recipe.rollouts, lambda: None)
    return read_bytes(modules, ppo.optimizer, held.highest)


def _save(model: Any, base: Weights, folder: Path) -> None:
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)


def forecast(base: Weights, method: Method, texts: int, length: int, rank: int | None, dtype: str) -> Forecast:
    """What the form would say of the same run."""
    config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    rows = texts // 2 if method in PAIRED else texts
    return forecast_memory(
        config, method, is_lora=rank is not None, rank=rank or 16, dtype=dtype, batch=rows, length=length,
        rollouts=MINIBATCHES * texts if method == "ppo" else None, on_cpu=not torch.cuda.is_available(),
        reward="adapter" if method == "ppo" else "none", new=length - length // 4 if method in ONLINE else None,
    )  # fmt: skip


def in_own_process(base: Weights, method: Method, rank: int, asked: argparse.Namespace, dtype: str) -> Bytes:
    """The same in a fresh process, so that nothing of another measurement is held."""
    given = ["--one", method, "--base", base.place, base.manifest_sha256, "--dtype", dtype, "--rank", str(rank)]
    given += ["--texts", str(asked.texts), "--length", str(asked.length)]
    done = subprocess.run([sys.executable, "-m", "bench.forecast", *given], stdout=subprocess.PIPE, check=True)
    return Bytes(**json.loads(done.stdout.splitlines()[-1]))


def compare(base: Weights, shape: str, asked: argparse.Namespace) -> None:
    """A row for each method, all weights and LoRA."""
    for method in asked.only:
        for rank in (0, asked.rank):
            held = in_own_process(base, method, rank, asked, asked.dtype)
            found = forecast(base, method, asked.texts, asked.length, rank or None, asked.dtype)
            ratio = found.n_bytes / held.peak
            verdict = "PASS" if LIMITS[0] <= ratio <= LIMITS[1] else "FAIL"
            columns = "".join(f"{n / 2**20:10.1f}" for n in (held.weights, held.working, held.peak, found.n_bytes))
            print(f"{shape:14}{method:12}{'LoRA' if rank else 'full':6}{columns}{ratio:8.2f}  {verdict}", flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tiny", "small"])
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--one", choices=METHODS)
    parser.add_argument("--base", nargs=2)
    asked = parser.parse_args()
    if asked.one:
        with tempfile.TemporaryDirectory() as scratch:
            given = (asked.texts, asked.length, asked.rank or None, asked.dtype, Path(scratch))
            print(json.dumps(measure(asked.one, Weights(*asked.base), *given).as_dict()))
        return
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, counted"
    print(f"{asked.texts} texts of {asked.length} tokens a step, {asked.dtype}, LoRA rank {asked.rank}; {where}; MiB")
    print(f"{'':32}{'weights':>10}{'working':>10}{'peak':>10}{'forecast':>10}{'ratio':>8}")
    for shape in asked.shape:
        with tempfile.TemporaryDirectory() as folder:
            base = write_random_base(Path(folder) / "base", SHAPES[shape], "float32")
            compare(base, shape, asked)


if __name__ == "__main__":
    main()
