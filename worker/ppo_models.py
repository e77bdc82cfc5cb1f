"""The four models of PPO (policy, reference, reward, value) as separate copies or as adapters on one frozen base.

Shapes: b completions, t tokens of prompt and completion together, n of the completion alone.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from app.errors import AppError
from worker.bi_encoder import HostedBiEncoder, host_towers, is_bi_encoder, read_scores
from worker.loading import (
    Weights,
    check_base,
    check_whole,
    device,
    load_full,
    load_lora,
    load_reward,
    load_tokenizer,
    lora_config,
)
from worker.rollout import positions
from worker.tiled import Head, tiled_log_probs


class PpoModels(Protocol):
    """What the PPO loop asks of its models."""

    policy: nn.Module

    def use_policy(self) -> None:
        """Makes `policy` compute the policy (adapters may have been switched)."""

    def policy_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities (b, n) of the last n tokens as sampled at a temperature, and the entropy (b, n) there."""

    def reference_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        """The same log-probabilities (b, n) from the reference, without gradient."""

    def values(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        """Values (b, n) of the states in which the last n tokens were chosen."""

    def scores(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        """The reward model's score (b,) of each whole text, whose last n columns are the completion, without gradient;
        zero where there is no reward model."""

    def policy_parameters(self) -> list[nn.Parameter]: ...

    def value_parameters(self) -> list[nn.Parameter]: ...

    def state(self) -> dict[str, Tensor]:
        """Everything trainable, by name."""

    def load_state(self, state: dict[str, Tensor]) -> None: ...

    def save_policy(self, folder: Path) -> None: ...


def _hidden(body: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    out = body(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    return out.last_hidden_state


def _predicting(hidden: Tensor, tokens: Tensor) -> Tensor:
    """The states (b, n, h) in which the last n tokens were chosen: only they pass through the output layer."""
    return hidden[:, -tokens.shape[1] - 1 : -1]


def _at_last_token(per_token: Tensor, ids: Tensor, pad_id: int) -> Tensor:
    """The entry (b,) at each row's last token that is no pad: where transformers' classifiers read, so where the
    reward model was trained to put its score (also if one token serves as pad and end)."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return per_token.gather(1, (places * (ids != pad_id)).argmax(-1, keepdim=True)).squeeze(1)


def _head(hidden: int, dtype: torch.dtype) -> nn.Linear:
    """A value head that begins at zero, so that the first advantages are the rewards themselves."""
    head = nn.Linear(hidden, 1, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head.to(device())


class FullModels:
    """Separate copies: policy and value are trained whole; reference and reward model are frozen."""

    def __init__(self, start: Weights, reward: Weights | None, dtype: str = "float32") -> None:
        self.policy = load_full(start, dtype).eval()  # no dropout anywhere: ratios begin at exactly 1
        self.reference = load_full(start, dtype).eval().requires_grad_(False)
        self.reward = load_reward(reward, dtype) if reward else None
        self.heads = Head(self.policy), Head(self.reference)
        self.value_body = load_full(start, dtype).base_model.eval()
        self.value_head = _head(self.policy.config.hidden_size, self.policy.dtype)

    def use_policy(self) -> None:
        return

    def policy_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        hidden = _predicting(_hidden(self.policy.base_model, ids, mask), tokens)
        return tiled_log_probs(self.heads[0], hidden, tokens, temperature)

    @torch.no_grad()
    def reference_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        hidden = _predicting(_hidden(self.reference.base_model, ids, mask), tokens)
        return tiled_log_probs(self.heads[1], hidden, tokens, temperature)[0]

    def values(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        hidden = _hidden(self.value_body, ids, mask)[:, -n - 1 : -1]
        return self.value_head(hidden).squeeze(-1).float()

    def scores(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        if self.reward is None:
            return torch.zeros(len(ids), device=ids.device)
        return read_scores(self.reward, ids, mask, ids.shape[1] - n)

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self.policy.parameters())

    def value_parameters(self) -> list[nn.Parameter]:
        return [*self.value_body.parameters(), *self.value_head.parameters()]

    def _trained(self) -> nn.ModuleDict:
        return nn.ModuleDict({"policy": self.policy, "body": self.value_body, "head": self.value_head})

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._trained().state_dict().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._trained().load_state_dict(state)

    def save_policy(self, folder: Path) -> None:
        self.policy.save_pretrained(folder)


class LoraModels:
    """One frozen base; policy, value, reward (and a starting adapter as reference) are adapters on it.

    Without a starting adapter the reference is the base with its adapters off. A bi-encoder's towers are an adapter
    each. A reward model with full weights, or on another base, stays a separate copy.
    """

    def __init__(self, start: Weights, reward: Weights | None, rank: int, dtype: str = "float32") -> None:
        self.net = load_lora(start, rank, dtype, name="policy").eval()
        self.policy = self.net
        self.has_reference_adapter = start.base is not None
        self.net.add_adapter("value", lora_config(rank))
        if self.has_reference_adapter:
            self.net.load_adapter(start.place, adapter_name="reference", is_trainable=False)
        # In float32 as the adapters are: steps of a small learning rate are lost in bfloat16.
        self.value_head = _head(self.net.config.hidden_size, torch.float32)
        self.body = self.net.get_base_model().base_model
        self.reward: Any = None  # a separate copy
        self.towers: HostedBiEncoder | None = None
        self.has_reward = reward is not None
        if reward is None:
            pass
        elif reward.base is None or reward.base != start.root:
            self.reward = load_reward(reward, dtype)
        elif is_bi_encoder(reward):
            self.towers = host_towers(reward, self.net, self._body_with)
        else:
            self._add_reward(reward)
        self.head = Head(self.net.get_base_model())
        self.pad_id = int(load_tokenizer(start).pad_token_id)
        if self.net.dtype != torch.float32:
            self._keep_inputs_narrow()
        self._use("policy")

    def _keep_inputs_narrow(self) -> None:
        """Adapters are float32 on a base of half the width. peft would copy each layer's input to float32 and keep the
        copies for the backward pass, more than all other activations; autocast narrows the adapter's weights instead.
        """
        for module in self.net.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
        self.body.forward = torch.autocast(device().type, dtype=torch.bfloat16)(self.body.forward)

    def _add_reward(self, reward: Weights) -> None:
        from peft import PeftConfig, set_peft_model_state_dict

        check_whole(reward)
        check_base(reward, reward.root)
        config = PeftConfig.from_pretrained(reward.place)
        config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True
        self.net.add_adapter("reward", config)
        tensors = load_file(reward.folder / "adapter_model.safetensors")
        heads = [name for name in tensors if ".score." in name and name.endswith("weight")]
        if len(heads) != 1:
            raise AppError(f"The reward adapter at {reward.folder.name} has no score head: train it again.")
        self.score = tensors.pop(heads[0]).to(device(), torch.float32)
        set_peft_model_state_dict(self.net, tensors, adapter_name="reward")

    def _use(self, name: str) -> None:
        """Switches adapters. peft then freezes all others, so what is trained is unfrozen again."""
        self.net.set_adapter(name)
        for parameter_name, parameter in self.net.named_parameters():
            parameter.requires_grad_(".policy." in parameter_name or ".value." in parameter_name)

    def _body_with(self, name: str) -> Any:
        self._use(name)
        return self.body

    def use_policy(self) -> None:
        self._use("policy")

    def policy_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        self._use("policy")
        hidden = _predicting(_hidden(self.body, ids, mask), tokens)
        return tiled_log_probs(self.head, hidden, tokens, temperature)

    @torch.no_grad()
    def reference_log_probs(self, ids: Tensor, mask: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        if self.has_reference_adapter:
            self._use("reference")
            hidden = _hidden(self.body, ids, mask)
        else:
            with self.net.disable_adapter():
                hidden = _hidden(self.body, ids, mask)
        return tiled_log_probs(self.head, _predicting(hidden, tokens), tokens, temperature)[0]

    def values(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        self._use("value")
        hidden = _hidden(self.body, ids, mask)[:, -n - 1 : -1]
        return self.value_head(hidden.float()).squeeze(-1).float()

    @torch.no_grad()
    def scores(self, ids: Tensor, mask: Tensor, n: int) -> Tensor:
        if not self.has_reward:
            return torch.zeros(len(ids), device=ids.device)
        own = self.reward or self.towers
        if own is not None:
            return read_scores(own, ids, mask, ids.shape[1] - n)
        self._use("reward")
        per_token = (_hidden(self.body, ids, mask).float() @ self.score.T).squeeze(-1)
        return _at_last_token(per_token, ids, self.pad_id)

    def _named(self, adapter: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.net.named_parameters() if f".{adapter}." in name}

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self._named("policy").values())

    def value_parameters(self) -> list[nn.Parameter]:
        return [*self._named("value").values(), *self.value_head.parameters()]

    def _trained(self) -> dict[str, Tensor]:
        head = {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
        return {**self._named("policy"), **self._named("value"), **head}

    def state(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self._trained().items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self._trained().items():
            parameter.copy_(state[name])

    def save_policy(self, folder: Path) -> None:
        """Only the policy's adapter, in the folder itself (peft puts named adapters below it)."""
        self.net.save_pretrained(folder, selected_adapters=["policy"])
        below = folder / "policy"
        for path in below.iterdir():
            path.rename(folder / path.name)
        below.rmdir()


def load_ppo_models(start: Weights, reward: Weights | None, is_lora: bool, rank: int, dtype: str) -> PpoModels:
    return LoraModels(start, reward, rank, dtype) if is_lora else FullModels(start, reward, dtype)
