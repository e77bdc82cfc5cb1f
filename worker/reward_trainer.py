"""TRL's reward trainer with soft labels, margins and a bi-encoder. Imported only inside functions, as TRL is."""

from typing import Any

import datasets
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from worker.dev_means import RewardMeans
from worker.llm import encode_parts


def bradley_terry_loss(lead: Tensor, p_chosen: Tensor, margin: float, is_soft: bool) -> Tensor:
    """−log σ(lead − m) (b,) of how far chosen leads (b,), with m = margin · |2p − 1| (Llama 2, 2307.09288, eq. 2).

    Soft: the same loss of the pair turned round counts with 1 − p (Bradley and Terry's likelihood of a share p).
    """
    asked = margin * (2 * p_chosen - 1).abs()
    forward, backward = -logsigmoid(lead - asked), -logsigmoid(-lead - asked)
    return p_chosen * forward + (1 - p_chosen) * backward if is_soft else forward


def in_parts(rows: list[dict[str, Any]], tokenizer: Any) -> datasets.Dataset | None:
    """Rows as token ids with where the completion begins, which is what a bi-encoder is told; None without rows."""
    found = []
    for row in rows:
        (head, chosen), (_, rejected) = (
            encode_parts(tokenizer, row["prompt"], row[side][0]["content"]) for side in ("chosen", "rejected")
        )
        found.append({
            "chosen_ids": head + chosen, "rejected_ids": head + rejected, "start": len(head),
            "p_chosen": row.get("p_chosen", 1.0),
        })  # fmt: skip
    return datasets.Dataset.from_list(found) if found else None


class SureCollator(DataCollatorForPreference):
    """TRL's, passing on how sure each label is, and for a bi-encoder where each completion begins."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["p_chosen"] = torch.tensor([one.get("p_chosen", 1.0) for one in examples])
        if "start" in examples[0]:
            batch["starts"] = torch.tensor([one["start"] for one in examples] * 2)  # chosen rows, then rejected ones
        return batch


class SureRewardTrainer(RewardMeans, RewardTrainer):
    """`recipe` needs is_soft, margin and center; without soft labels and margin the loss is TRL's own."""

    def __init__(self, recipe: Any, **given: Any) -> None:
        self.recipe = recipe
        super().__init__(data_collator=SureCollator(given["processing_class"].pad_token_id), **given)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns  # type: ignore[has-type]
        self._signature_columns = [*dict.fromkeys([*columns, "p_chosen", "start"])]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        p_chosen = inputs.pop("p_chosen")
        plain, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss = plain
        if self.recipe.is_soft or self.recipe.margin:
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            loss = bradley_terry_loss(chosen - rejected, p_chosen, self.recipe.margin, self.recipe.is_soft).mean()
            loss = loss + self.recipe.center * ((chosen + rejected) ** 2).mean()
        return (loss, outputs) if return_outputs else loss
