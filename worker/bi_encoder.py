"""SAWYER's reward model: one tower reads the prompt, the other the completion, and they meet in one number.

h are a tower's last hidden states; u = W_p · mean(h of the prompt), v = W_c · mean(h of the completion), each mean over
the text's own tokens (Reimers and Gurevych 2019, 1908.10084). The score, d the width of u and v, is
    dot       uᵀv / √d                      scaled as in Vaswani et al. 2017, 1706.03762
    cosine    e^τ · uᵀv / (|u|·|v|)         with a learned temperature, e^τ ≤ 100, as in Radford et al. 2021, 2103.00020
Training all weights keeps two copies of the start's body; LoRA keeps one frozen body with an adapter for each tower.
Neither tower sees the other's text before the score, so a prompt need be read once for any number of completions.
A text without tokens is the zero vector.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from app.errors import AppError
from worker.loading import Weights, check_base, check_whole, device, load_full, load_tokenizer, lora_config
from worker.rollout import positions

FACTS = "bi_encoder.json"
TOWERS = ("prompt", "completion")
TEMPERATURE = (2.659, 4.605)  # τ begins at ln(1/0.07) and stays under ln 100, as CLIP's


class BiEncoder(nn.Module):
    """Scores of texts as a sequence classifier gives them, for what is told where each completion begins."""

    def __init__(self, body: Any, scoring: str, rank: int | None) -> None:
        """`rank` of the adapters, None for towers with weights of their own. Heads are drawn from torch's own seed."""
        super().__init__()
        self.config, self.scoring, self.rank = body.config, scoring, rank
        self.config.num_labels, self.config.architectures = 1, ["BiEncoder"]
        self._make_heads(self.config.hidden_size)
        if rank is None:
            self.towers = nn.ModuleDict({TOWERS[0]: body, TOWERS[1]: deepcopy(body)})
        else:
            from peft import get_peft_model

            self.net = get_peft_model(body, lora_config(rank, "FEATURE_EXTRACTION"), adapter_name=TOWERS[0])
            self.net.add_adapter(TOWERS[1], lora_config(rank, "FEATURE_EXTRACTION"))
            self.peft_config = self.net.peft_config
            self._tower(TOWERS[0])

    def _make_heads(self, width: int) -> None:
        self.heads = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in TOWERS})
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE[0])) if self.scoring == "cosine" else None

    def _tower(self, name: str) -> Any:
        if self.rank is None:
            return self.towers[name]
        self.net.set_adapter(name)  # freezes the other, so both are unfrozen again
        for parameter_name, parameter in self.net.named_parameters():
            parameter.requires_grad_("lora_" in parameter_name)
        return self.net

    def embed(self, name: str, ids: Tensor, mask: Tensor) -> Tensor:
        """What a tower makes (b, d) of the tokens (b, t) where the mask is true."""
        out = self._tower(name)(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False
        )
        hidden = torch.where(mask.unsqueeze(-1), out.last_hidden_state.float(), 0.0)
        mean = hidden.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        embedded: Tensor = self.heads[name](mean)
        return embedded

    def forward(self, input_ids: Tensor, attention_mask: Tensor, starts: Tensor, use_cache: bool = False) -> Any:
        """Logits (b, 1) of rows (b, t), padded on either side; `starts` (b,): the column where a completion begins."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        is_prompt = torch.arange(input_ids.shape[1], device=input_ids.device) < starts.unsqueeze(1)
        seen = attention_mask.bool()
        last, first = max(1, int(starts.max())), min(int(starts.min()), input_ids.shape[1] - 1)
        u = self.embed("prompt", input_ids[:, :last], (seen & is_prompt)[:, :last])
        v = self.embed("completion", input_ids[:, first:], (seen & ~is_prompt)[:, first:])
        if self.temperature is None:
            score = (u * v).sum(-1) / u.shape[-1] ** 0.5
        else:
            score = self.temperature.clamp(max=TEMPERATURE[1]).exp() * (
                normalize(u, dim=-1) * normalize(v, dim=-1)
            ).sum(-1)
        return SequenceClassifierOutput(logits=score.unsqueeze(-1))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def add_model_tags(self, tags: Any) -> None:
        """Trainers tag a model for the hub; there is no card here to tag."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What is trained: with adapters, the frozen body is the base's own and not stored again."""
        found: dict[str, Tensor] = super().state_dict(*args, **kwargs)
        return {name: value for name, value in found.items() if self.rank is None or _is_own(name)}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Raises AppError unless it holds exactly what is trained."""
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in found.missing_keys if self.rank is None or _is_own(name)]
        if missing or found.unexpected_keys:
            raise AppError(f"These are not this bi-encoder’s weights: {(missing + found.unexpected_keys)[0]} differs.")
        found.missing_keys.clear()
        return found

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        """Weights as safetensors and what it takes to load them; configuration only where the weights are whole."""
        (folder / FACTS).write_text(json.dumps({"scoring": self.scoring, "rank": self.rank}), encoding="utf-8")
        if self.rank is None:
            self.config.save_pretrained(folder)
        name = "model.safetensors" if self.rank is None else "adapter_model.safetensors"
        save_file({key: value.contiguous() for key, value in self.state_dict().items()}, folder / name)

    def describe(self) -> str:
        """One line for a page: what the towers are and how they meet."""
        return describe(self.scoring, self.rank)


class HostedBiEncoder(BiEncoder):
    """A LoRA bi-encoder whose towers are adapters on a base that other models use too: only its heads are its own."""

    def __init__(self, scoring: str, rank: int, width: int, tower: Callable[[str], Any]) -> None:
        """`tower` switches the base to a tower's adapter and returns what runs it; `width`: the base's hidden size."""
        nn.Module.__init__(self)
        self.scoring, self.rank, self._switch = scoring, rank, tower
        self._make_heads(width)

    def _tower(self, name: str) -> Any:
        return self._switch(name)


def describe(scoring: str, rank: int | None) -> str:
    """One line for a page: what the towers are and how they meet."""
    towers = "two copies of the base" if rank is None else f"two adapters of rank {rank} on one base"
    score = "e^τ·cos(u, v), τ learned" if scoring == "cosine" else "u·v/√d"
    return f"bi-encoder: {towers}, mean of the last hidden states, score {score}"


def _is_own(name: str) -> bool:
    return "lora_" in name or name.startswith("heads.") or name == "temperature"


def is_bi_encoder(weights: Weights) -> bool:
    return (weights.folder / FACTS).is_file()


def make_bi_encoder(start: Weights, scoring: str, rank: int | None, dtype: str, seed: int) -> BiEncoder:
    """Towers from a policy's body (its base's, for adapters), heads drawn from the seed."""
    body = load_full(start if rank is None else start.root, dtype).base_model
    body.config.pad_token_id = load_tokenizer(start).pad_token_id
    torch.manual_seed(seed)
    return BiEncoder(body, scoring, rank).to(device())


def load_bi_encoder(weights: Weights, dtype: str = "float32") -> BiEncoder:
    """What save_pretrained wrote, on its base where it is adapters. Raises AppError where the tensors do not fit."""
    from transformers import AutoConfig, AutoModel

    check_whole(weights)
    facts = json.loads((weights.folder / FACTS).read_text(encoding="utf-8"))
    if weights.base is not None:
        check_base(weights, weights.base)
        body = load_full(weights.base, dtype).base_model
    else:
        config = AutoConfig.from_pretrained(weights.place, trust_remote_code=False)
        body = AutoModel.from_config(config, dtype=getattr(torch, dtype))
    model = BiEncoder(body, facts["scoring"], facts["rank"])
    model.load_state_dict(
        load_file(weights.folder / ("adapter_model.safetensors" if weights.base else "model.safetensors"))
    )
    return model.to(device())


def host_towers(reward: Weights, net: Any, use: Callable[[str], Any]) -> HostedBiEncoder:
    """A LoRA bi-encoder as two adapters, reward_prompt and reward_completion, on a policy that has the same base.

    `net` is the policy's PeftModel; `use` switches it to an adapter and returns its body.
    """
    check_whole(reward)
    check_base(reward, reward.root)
    facts = json.loads((reward.folder / FACTS).read_text(encoding="utf-8"))
    for name in TOWERS:
        net.add_adapter(f"reward_{name}", lora_config(facts["rank"]))
    base = net.get_base_model()
    model = HostedBiEncoder(
        facts["scoring"], facts["rank"], base.config.hidden_size, lambda name: use(f"reward_{name}")
    )
    tensors = load_file(reward.folder / "adapter_model.safetensors")
    model.load_state_dict({name: tensors.pop(name) for name in list(tensors) if "lora_" not in name})
    adapters = {name: p for name, p in net.named_parameters() if ".reward_" in name}
    stored = {_hosted_name(name, base.base_model_prefix): tensor for name, tensor in tensors.items()}
    if stored.keys() != adapters.keys():
        name = sorted(stored.keys() ^ adapters.keys())[0]
        raise AppError(f"The bi-encoder at {reward.folder.name} does not fit its base: {name} differs.")
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(stored[name])
    return model.to(device()).eval().requires_grad_(False)


def _hosted_name(name: str, prefix: str) -> str:
    """A tower's tensor as it is called on a policy, whose body is one level further down and has other adapters."""
    for tower in TOWERS:
        name = name.replace(f".{tower}.", f".reward_{tower}.")
    return name.replace("net.base_model.model.", f"base_model.model.{prefix}.", 1)


@torch.no_grad()
def read_scores(model: Any, ids: Tensor, mask: Tensor, starts: Tensor | int) -> Tensor:
    """Scores (b,) by any reward model of rows (b, t) whose completions begin at the columns `starts`, (b,) or one."""
    starts = torch.as_tensor(starts, device=ids.device).expand(len(ids))
    if isinstance(model, BiEncoder):
        return model(ids, mask, starts).logits[:, 0].float()
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    return out.logits[:, 0].float()
