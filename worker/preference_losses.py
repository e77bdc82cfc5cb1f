"""The losses of preference training, as functions of log-ratios; pure, so that each can be read beside its paper.

DPO: Rafailov et al. 2023, 2305.18290, eq. 7. IPO: Azar et al. 2023, 2310.12036, eq. 17, averaged over tokens as its
authors advise. Hinge: SLiC, Zhao et al. 2023, 2305.10425. Label smoothing ("conservative DPO"): Mitchell 2023, note on
DPO, eq. 3. Robust: Chowdhury et al. 2024, 2403.00409. SimPO: Meng et al. 2024, 2405.14734, eq. 6.

Shapes: b pairs. A log-ratio is log π/π_ref summed over a completion's tokens, in nats; n is how many tokens it has.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

AVERAGED = {"ipo", "sigmoid_norm"}  # losses that divide each completion's log-ratio by its tokens


def margins(chosen: Tensor, rejected: Tensor, n_chosen: Tensor, n_rejected: Tensor, loss: str) -> Tensor:
    """How much more the policy has moved towards chosen than towards rejected (b,), before beta."""
    if loss in AVERAGED:
        return chosen / n_chosen.clamp(min=1) - rejected / n_rejected.clamp(min=1)
    return chosen - rejected


def one_way(loss: str, margin: Tensor, beta: float) -> Tensor:
    """The loss (b,) of margins as if every label were sure."""
    if loss in {"sigmoid", "sigmoid_norm", "robust"}:
        return -logsigmoid(beta * margin)
    if loss == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if loss == "hinge":
        return torch.relu(1 - beta * margin)
    raise ValueError(f"unknown loss {loss!r}")


def preference_loss(loss: str, margin: Tensor, beta: float, smoothing: float, p_chosen: Tensor | None) -> Tensor:
    """The loss (b,) where a label is right with a probability.

    `smoothing` is the share of labels thought wrong; `p_chosen` (b,) the judge's own probability for each, where soft
    labels are asked for. Both directions are weighted by what remains; "robust" undoes the noise in expectation.
    """
    forward, backward = one_way(loss, margin, beta), one_way(loss, -margin, beta)
    if loss == "robust":
        return ((1 - smoothing) * forward - smoothing * backward) / (1 - 2 * smoothing)
    right = torch.ones_like(margin) if p_chosen is None else p_chosen
    right = right * (1 - smoothing) + (1 - right) * smoothing
    return right * forward + (1 - right) * backward


def simpo_margins(chosen: Tensor, rejected: Tensor, n_chosen: Tensor, n_rejected: Tensor) -> Tensor:
    """SimPO's margin (b,): log-probabilities per token, no reference."""
    return chosen / n_chosen.clamp(min=1) - rejected / n_rejected.clamp(min=1)


def simpo_loss(margin: Tensor, beta: float, gamma: float, smoothing: float, p_chosen: Tensor | None) -> Tensor:
    """−log σ(β·margin − γ) (b,); a soft label weighs it against the same loss of the pair turned round."""
    right = torch.ones_like(margin) if p_chosen is None else p_chosen
    right = right * (1 - smoothing) + (1 - right) * smoothing
    return -right * logsigmoid(beta * margin - gamma) - (1 - right) * logsigmoid(-beta * margin - gamma)
