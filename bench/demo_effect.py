"""The demo's effect without the app around it: trains every arm for some seeds and prints the table.

    python -m bench.demo_effect --seeds 1 2 3 [--only dpo ppo] [--set dpo.lr=3e-4 …] [--work FOLDER]

Uses the training functions and the recipes of experiments/demo.yaml; the pairs are sampled, labelled by the rule with
flipped labels, and written as a snapshot as the app would do it.
"""

import argparse
import hashlib
import itertools
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from app.prompts.demo_corpus import four_choice_items, list_prompts, write_documents
from app.prompts.strict_format import is_answer_exact, read_strict_format, score_by_rule
from app.training.recipes import DemoBaseRecipe, DpoRecipe, GrpoRecipe, PpoRecipe, RewardRecipe, SftRecipe
from worker import dpo, grpo, ppo, reward, sft
from worker.demo_base import train_base
from worker.loading import Weights, encode_prompt, load_full, load_tokenizer, render_prompt
from worker.ppo import Ppo
from worker.ppo_models import load_ppo_models
from worker.preferences import read_preferences
from worker.rollout import sample, seeded
from worker.saving import save_folder, write_model

ROOT = Path(__file__).resolve().parent.parent
KINDS = {kind.kind: kind for kind in (DemoBaseRecipe, SftRecipe, RewardRecipe, DpoRecipe, PpoRecipe, GrpoRecipe)}
STEPS = {step["name"]: step["recipe"] for step in yaml.safe_load((ROOT / "experiments/demo.yaml").read_text())["steps"]}
FLIP_RATE = STEPS["judge"]["flip_rate"]
SAMPLES = STEPS["pairs"]["samples"]


class Print:
    """A Watch that prints a few lines."""

    def __init__(self, name: str, is_loud: bool) -> None:
        self.name, self.is_loud = name, is_loud

    def check(self) -> None: ...
    def progress(self, done: int, total: int, note: str = "") -> None: ...
    def log(self, text: str, level: str = "info") -> None: ...
    def resumed_at(self, step: int) -> None: ...
    def flush(self) -> None: ...
    def sampled(self, step: int, rows: list[tuple[str, str, float | None]]) -> None: ...
    def spend(self, **amounts: float) -> None: ...

    def metric(self, step: int, **values: float) -> None:
        if self.is_loud and (step % 10 == 0 or "dev_loss" in values):
            shown = {k: round(v, 3) for k, v in values.items() if k != "epoch"}
            print(f"  {self.name} {step}: {shown}", flush=True)


def make_recipe(name: str, changes: dict[str, Any]) -> Any:
    """The demo's recipe of a step; references to rows become 1, since here nothing stands in a database."""
    given = {**STEPS[name], **changes.get(name, {})}
    kind = KINDS[given.pop("kind")]
    given = {k: 1 if isinstance(v, str) and v.startswith("@") else v for k, v in given.items()}
    # YAML reads 5e-4 as a text; the recipe reads it as a number, as it does in the app.
    return kind.model_validate(given)


def texts_of(
    model: Any, tokenizer: Any, prompts: list[dict[str, Any]], samples: int, key: Any, temperature: float = 1.0
) -> list[list[str]]:
    """`samples` completions of each prompt."""
    ids = [encode_prompt(tokenizer, render_prompt(tokenizer, p["messages"])) for p in prompts]
    found: list[list[str]] = [[] for _ in prompts]
    for k in range(samples):
        for at in range(0, len(ids), 128):
            rollout = sample(
                model, ids[at : at + 128], 48, temperature, [tokenizer.eos_token_id], tokenizer.pad_token_id,
                seeded(key, k, at), lambda: None,
            )  # fmt: skip
            for place, (row, mask) in enumerate(zip(rollout.tokens, rollout.mask, strict=True)):
                found[at + place].append(tokenizer.decode(row[mask.bool()], skip_special_tokens=True))
    return found


def write_snapshot(path: Path, model: Any, tokenizer: Any, seed: int, pairing: str, per_prompt: int) -> dict[str, Any]:
    prompts = [p for p in list_prompts() if p["split"] in {"train", "dev"}]
    texts = texts_of(model, tokenizer, prompts, SAMPLES, (seed, "pairs"))
    rng = random.Random(seed)
    rows, n = [], 0
    for prompt, mine in zip(prompts, texts, strict=True):
        if pairing == "random":
            pairs = rng.sample(list(itertools.combinations(range(SAMPLES), 2)), per_prompt)
        else:
            order = sorted(range(SAMPLES), key=lambda i: (-float(read_strict_format(mine[i]).is_strict), rng.random()))
            pairs = [(order[i], order[-1 - i]) for i in range(per_prompt)]
        for a, b in pairs:
            n += 1
            difference = score_by_rule(mine[a], prompt["reference"]) - score_by_rule(mine[b], prompt["reference"])
            if difference == 0:
                continue
            is_a = (difference > 0) != (rng.random() < FLIP_RATE)
            rows.append(
                {
                    "prompt": prompt["messages"],
                    "chosen": mine[a if is_a else b],
                    "rejected": mine[b if is_a else a],
                    "split": prompt["split"],
                    "group": prompt["group"],
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train = [r for r in rows if r["split"] == "train"]
    strict = sum(read_strict_format(r["chosen"]).is_strict for r in train) / len(train)
    return {"pairs": n, "train": len(train), "dev": len(rows) - len(train), "chosen_strict": round(strict, 3)}


def measure(weights: Weights, seed: int) -> dict[str, float]:
    model, tokenizer = load_full(weights).eval(), load_tokenizer(weights)
    prompts = [p for p in list_prompts() if p["split"] == "test"]
    texts = texts_of(model, tokenizer, prompts, SAMPLES, (seed, "test"))
    rows = [(p["reference"], text) for p, mine in zip(prompts, texts, strict=True) for text in mine]
    right = 0
    items = four_choice_items(0)
    with torch.no_grad():
        for item in items:
            context = render_prompt(tokenizer, [{"role": "user", "content": item["question"]}]) + "Answer:"
            start = len(encode_prompt(tokenizer, context))
            sums = []
            for choice in item["choices"]:
                ids = encode_prompt(tokenizer, f"{context} {choice}")
                shares = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                sums.append(sum(float(shares[j - 1, ids[j]]) for j in range(start, len(ids))))
            right += sums.index(max(sums)) == item["answer"]
    greedy = texts_of(model, tokenizer, prompts, 1, (seed, "greedy"), temperature=0.01)
    return {
        "greedy": sum(read_strict_format(mine[0]).is_strict for mine in greedy) / len(greedy),
        "n": len(rows),
        "format": sum(read_strict_format(t).is_strict for _, t in rows) / len(rows),
        "accuracy": sum(is_answer_exact(t, r) for r, t in rows) / len(rows),
        "four_choice": right / len(items),
    }


def run_arm(name: str, recipe: Any, seed: int, at: Path, base: Weights, is_loud: bool) -> dict[str, float]:
    folder = at / f"{name}-state"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    watch = Print(name, is_loud)
    kept: dict[str, float] = {}
    train = [p for p in list_prompts() if p["split"] == "train"]
    if name in {"sft", "reward", "dpo"}:
        fit = {"sft": sft.fit_sft, "reward": reward.fit_reward, "dpo": dpo.fit_dpo}[name]
        model, tokenizer, kept = fit(recipe, seed, base, read_preferences(at / "snapshot.jsonl"), folder, watch)
    elif name == "grpo":
        prompts = [grpo.RlPrompt(p["messages"], [], p["reference"]) for p in train]
        rewarder = grpo.rule_reward(recipe.flip_rate, seed)
        model, tokenizer, kept = grpo.fit_grpo(recipe, seed, base, prompts, None, rewarder, folder, watch)
    else:
        tokenizer = load_tokenizer(base)
        models = load_ppo_models(base, Weights(str(at / "reward")), recipe.is_lora, recipe.lora_rank, recipe.dtype)
        ids = [encode_prompt(tokenizer, render_prompt(tokenizer, p["messages"])) for p in train]
        ppo.train(Ppo(recipe, seed, models, tokenizer), ids, None, folder, watch)
        model = models.policy
    save_folder(at / name, lambda to: write_model(model, tokenizer, to))
    shutil.rmtree(folder, ignore_errors=True)
    return kept


def run_seed(seed: int, args: argparse.Namespace, changes: dict[str, Any]) -> dict[str, dict[str, float]]:
    work = Path(args.work)
    base_recipe = make_recipe("base", changes)
    key = hashlib.sha256(f"{base_recipe.stored()} {write_documents(500, seed)}".encode()).hexdigest()[:8]
    top = work / f"{seed}-{key}"
    base = Weights(str(top / "base"))
    if not (top / "base").exists():
        started = time.process_time()
        model, tokenizer = train_base(base_recipe, seed, lambda step, values: None)
        save_folder(top / "base", lambda to: write_model(model, tokenizer, to))
        cpu = time.process_time() - started
        (top / "base.json").write_text(json.dumps({**measure(base, seed), "cpu": round(cpu, 1)}))
    at = top / f"{args.pairing}-{args.per_prompt}"
    at.mkdir(exist_ok=True)
    if not (at / "snapshot.jsonl").exists():
        started = time.process_time()
        model, tokenizer = load_full(base).eval(), load_tokenizer(base)
        facts = write_snapshot(at / "snapshot.jsonl", model, tokenizer, seed, args.pairing, args.per_prompt)
        (at / "facts.json").write_text(json.dumps({**facts, "cpu": round(time.process_time() - started, 1)}))
    table: dict[str, dict[str, float]] = {}
    table["base"] = json.loads((top / "base.json").read_text())
    print(f"seed {seed} pairs: {(at / 'facts.json').read_text()}", flush=True)
    print(f"seed {seed} base: {table['base']}", flush=True)
    for name in ("sft", "reward", "dpo", "ppo", "grpo"):
        if args.only and name not in args.only:
            continue
        started = time.process_time()
        kept = run_arm(name, make_recipe(name, changes), seed, at, base, args.loud)
        cpu = time.process_time() - started
        if name == "reward":
            table[name] = {"dev_accuracy": kept.get("dev_accuracy", 0.0), "cpu": cpu}
        else:
            table[name] = {**measure(Weights(str(at / name)), seed), "cpu": cpu}
        print(f"seed {seed} {name}: { {k: round(v, 3) for k, v in table[name].items()} }", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--set", nargs="*", default=[], dest="changes")
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "preflab-demo-effect"))
    parser.add_argument("--pairing", default=STEPS["pairs"]["pairing"], choices=["random", "best_worst"])
    parser.add_argument("--per-prompt", type=int, default=STEPS["pairs"]["pairs_per_prompt"])
    parser.add_argument("--loud", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    changes: dict[str, Any] = {}
    for change in args.changes:
        where, _, value = change.partition("=")
        name, _, field = where.partition(".")
        changes.setdefault(name, {})[field] = json.loads(value) if value[0] in '0123456789tfn["' else value
    tables = [run_seed(seed, args, changes) for seed in args.seeds]
    print(f"\n{'arm':8}{'format median (worst)':>24}{'accuracy − base (worst)':>28}{'four-choice':>14}{'CPU s':>8}")
    for name in tables[0]:
        rows = [t[name] for t in tables]
        if "format" not in rows[0]:
            print(f"{name:8} dev accuracy {statistics.median(r['dev_accuracy'] for r in rows):.3f}")
            continue
        formats = [r["format"] for r in rows]
        drops = [r["accuracy"] - t["base"]["accuracy"] for r, t in zip(rows, tables, strict=True)]
        middle = statistics.median
        print(
            f"{name:8}{middle(formats):>16.3f} ({min(formats):.3f}){middle(drops):>20.3f} ({min(drops):+.3f})"
            f"{middle(r['four_choice'] for r in rows):>14.3f}{middle(r['cpu'] for r in rows):>8.1f}"
        )


if __name__ == "__main__":
    main()
