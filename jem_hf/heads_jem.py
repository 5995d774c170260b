"""Energies of features and labels."""

import torch
import torch.nn.functional as F
from torch import nn


class ProductHead(nn.Module):
    """
    A product of K classifiers: `log p~(x, y) = sum_k f_k(x)[y_k]` (Kelly et al. 2021, section 3).

    Args:
        num_features (`int`): Size D of the features.
        num_values (`list[int]`): Number of values V_k of each of the K attributes.
    """

    def __init__(self, num_features: int, num_values: list[int]):
        super().__init__()
        self.num_values = num_values
        self.linear = nn.Linear(num_features, len(num_values) * max(num_values))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, D) to logits (B, K, V), float32, -inf where an attribute has fewer than V values."""
        with torch.autocast(features.device.type, enabled=False):  # energies are sums: they need all their digits
            logits = F.linear(features.float(), self.linear.weight.float(), self.linear.bias.float())
        logits = logits.unflatten(-1, (len(self.num_values), -1))
        if len(set(self.num_values)) > 1:
            lacking = torch.arange(logits.shape[-1]) >= torch.tensor(self.num_values)[:, None]
            logits = logits.masked_fill(lacking.to(logits.device), -torch.inf)
        return logits


def log_joint(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`log p~(x, y_O)` (B,) from logits (B, K, V) and labels (B, K); labels of -1 are missing and marginalised."""
    observed = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels >= 0, observed, logits.logsumexp(-1)).sum(-1)


def log_marginal(logits: torch.Tensor) -> torch.Tensor:
    """`log p~(x)` (B,) from logits (B, K, V)."""
    return logits.logsumexp(-1).sum(-1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean of `-log p(y_k|x)` in nats over the labels that are present; logits (B, K, V), labels (B, K)."""
    present = (labels >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum") / present


HEADS = {"product": ProductHead}
