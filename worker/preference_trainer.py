"""TRL's DPO trainer with our losses, soft labels and a reference that is read from a cache instead of kept in memory.

What stays TRL's: chat templates, tokenising, batches, the log-probabilities computed in tiles, optimiser and resume.
Imported only inside functions: TRL takes six seconds to import.
"""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference, add_fused_lm_head, is_peft_model

from worker.dev_means import PairMeans
from worker.preference_losses import margins, preference_loss, simpo_loss, simpo_margins
from worker.reference_cache import Cache, text_key

NOT_FOR_THE_MODEL = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps", "p_chosen"}


class PreferenceCollator(DataCollatorForPreference):
    """TRL's, passing on how sure each label is."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["p_chosen"] = torch.tensor([one.get("p_chosen", 1.0) for one in examples])
        return batch


class PreferenceTrainer(PairMeans, DPOTrainer):
    """DPO and its kin. `recipe` needs loss, beta, label_smoothing, sft_weight and is_soft.

    TRL reads the reference's log-probabilities from the rows (`precompute_ref_log_probs`); they come from `cache`.
    `reference` is the model that gives those which are not there: None for the start itself.
    """

    def __init__(self, recipe: Any, cache: Cache, reference: Any = None, **given: Any) -> None:
        self.recipe, self.cache, self.reference = recipe, cache, reference
        if reference is not None:  # as TRL does to the policy: log-probabilities without whole logits
            add_fused_lm_head(reference.get_base_model() if is_peft_model(reference) else reference)
        self.n_reference_passes = 0  # texts the reference has read in this process
        self.own: set[str] = set()  # which
        self.step_tokens: Tensor | None = None  # of all chosen completions of the step, on average over its parts
        self.n_known = 0  # texts whose values were there already
        args, tokenizer = given["args"], given["processing_class"]
        super().__init__(
            data_collator=PreferenceCollator(tokenizer.pad_token_id, max_length=args.max_length), **given
        )  # fmt: skip
        self.reference = None  # has read its texts: only the policy stays in memory

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns  # type: ignore[has-type]
        self._signature_columns = [*dict.fromkeys([*columns, "p_chosen"])]

    # ------------------------------------------------------------------------------------------------ the reference

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Adds the reference's log-probabilities to every row, each text read by the reference once, ever.

        Batches are planned over all rows, whatever is known of them already, and stored one by one: a run that is
        killed and goes on gets the very same numbers.
        """
        keys = [
            [text_key(*self._as_read(row, side)) for side in ("chosen_ids", "rejected_ids")] for row in dataset
        ]  # fmt: skip
        with self.accelerator.main_process_first():  # of several processes the first reads, the others look up
            known = self.cache.read([key for both in keys for key in both])
            for start in range(0, len(keys), batch_size):
                places = range(start, min(start + batch_size, len(keys)))
                missing = [place for place in places if not known.keys() >= set(keys[place])]
                if missing:
                    known |= self._read_reference([dataset[place] for place in missing], [keys[p] for p in missing])
        self.n_known += sum(key not in self.own for both in keys for key in both)
        columns = {"ref_chosen_logps": 0, "ref_rejected_logps": 1}
        for column, side in columns.items():
            dataset = dataset.add_column(column, [known[both[side]] for both in keys])
        return dataset

    def _as_read(self, row: dict[str, Any], side: str) -> tuple[list[int], list[int]]:
        """Prompt and completion as the collator will cut them."""
        longest = self.args.max_length or len(row["prompt_ids"]) + len(row[side])
        return row["prompt_ids"][:longest], row[side][: max(0, longest - len(row["prompt_ids"]))]

    def _read_reference(self, rows: list[dict[str, Any]], keys: list[list[str]]) -> dict[str, float]:
        batch = self.data_collator(rows)
        batch.pop("p_chosen")
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        reader = self.model if self.reference is None else self.reference.to(self.accelerator.device)
        was_training = reader.training
        reader.eval()
        sides = self.compute_ref_log_probs(reader, batch)
        reader.train(was_training)
        lengths = batch["completion_mask"].sum(-1).chunk(2)
        found = {
            both[side]: (float(values[place]), int(lengths[side][place]))
            for side, values in enumerate(sides)
            for place, both in enumerate(keys)
        }
        self.n_reference_passes += len(found)
        self.own |= found.keys()
        self.cache.keep(found)
        return self.cache.read(list(found))

    # ------------------------------------------------------------------------------------------------------ the loss

    def get_batch_samples(self, *given: Any, **named: Any) -> Any:
        """The parts of the next step; counts their chosen tokens."""
        parts, n_items = super().get_batch_samples(*given, **named)
        counts = [part["completion_mask"].chunk(2)[0][:, 1:].sum() for part in parts]
        self.step_tokens = torch.stack(counts).float().mean().to(self.accelerator.device) if counts else None
        return parts, n_items

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        given = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        outputs = model(**given, use_cache=False, labels=labels, fused_lm_head=True)
        kept = mask[:, 1:]
        per_token = outputs.log_probs[:, -kept.shape[1] :]  # zero outside the completions
        chosen, rejected = per_token.sum(-1).chunk(2)
        n_chosen, n_rejected = kept.sum(-1).chunk(2)
        p_chosen = inputs["p_chosen"] if self.recipe.is_soft else None
        losses, rewards = self.objective(chosen, rejected, n_chosen, n_rejected, p_chosen, inputs)
        loss = losses.mean()
        if self.recipe.sft_weight:
            # Over the tokens of all parts and processes, whose losses are averaged: they take the step that one would.
            mine = self.step_tokens if self.step_tokens is not None and self.model.training else n_chosen.sum()
            n_tokens = self.accelerator.gather(mine.to(loss)).sum().clamp(min=1) / self.accelerator.num_processes
            loss = loss - self.recipe.sft_weight * per_token.chunk(2)[0].sum() / n_tokens
        self._note(outputs, inputs, kept, chosen, rejected, rewards)
        return (loss, outputs) if return_outputs else loss

    def objective(
        self, chosen: Tensor, rejected: Tensor, n_chosen: Tensor, n_rejected: Tensor, p_chosen: Tensor | None,
        inputs: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
        """Losses (b,) and the implicit rewards (b,) of both sides, of log-probabilities (b,) summed over tokens."""
        recipe = self.recipe
        up, down = chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"]
        margin = margins(up, down, n_chosen, n_rejected, recipe.loss)
        losses = preference_loss(recipe.loss, margin, recipe.beta, recipe.label_smoothing, p_chosen)
        return losses, (recipe.beta * up, recipe.beta * down)

    def _note(
        self, outputs: Any, inputs: dict[str, Any], kept: Tensor, chosen: Tensor, rejected: Tensor,
        rewards: tuple[Tensor, Tensor],
    ) -> None:  # fmt: skip
        """The curves, under TRL's names."""
        notes = self._metrics["train" if self.model.training else "eval"]
        if self.model.training:
            self._total_train_tokens += int(self.accelerator.gather(inputs["attention_mask"].sum()).sum())
        notes["num_tokens"] = [self._total_train_tokens]
        n = kept.shape[1]
        good, bad = (one.detach() for one in rewards)
        top = outputs.is_top1[:, -n:].chunk(2)[0] & kept.chunk(2)[0].bool()
        per_token = {
            "entropy": (outputs.entropy[:, -n:].detach() * kept, kept),
            "mean_token_accuracy": (top, kept.chunk(2)[0]),
        }
        for name, (values, counted) in per_token.items():
            both = torch.stack([values.sum().float(), counted.sum().float()]).unsqueeze(0)
            total, n_tokens = self.accelerator.gather(both).sum(0)
            notes[name].append(float(total / n_tokens.clamp(min=1)))  # over the tokens of all processes
        per_row = {
            "rewards/chosen": good, "rewards/rejected": bad, "rewards/margins": good - bad,
            "rewards/accuracies": (good > bad).float(),
            "logps/chosen": chosen.detach(), "logps/rejected": rejected.detach(),
        }  # fmt: skip
        for name, values in per_row.items():
            notes[name].append(float(self.accelerator.gather(values.mean().float()).mean()))


class SimpoTrainer(PreferenceTrainer):
    """SimPO: the same rows, no reference. Needs beta, gamma_margin, label_smoothing, sft_weight and is_soft."""

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset

    def objective(
        self, chosen: Tensor, rejected: Tensor, n_chosen: Tensor, n_rejected: Tensor, p_chosen: Tensor | None,
        inputs: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
        recipe = self.recipe
        margin = simpo_margins(chosen, rejected, n_chosen, n_rejected)
        losses = simpo_loss(margin, recipe.beta, recipe.gamma_margin, recipe.label_smoothing, p_chosen)
        each = chosen / n_chosen.clamp(min=1), rejected / n_rejected.clamp(min=1)
        return losses, (recipe.beta * each[0], recipe.beta * each[1])
