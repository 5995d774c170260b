"""Heads: how features of images and labels make `log p~(x, y)`."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .label_distributions_jem import InteractingDistribution, LabelDistribution, ProductDistribution
from .label_samplers_jem import existing_values

HIDDEN_SIZE = 128  # of the networks over labels


def full_precision(linear: nn.Linear, features: torch.Tensor) -> torch.Tensor:
    """A linear layer in float32 under any autocast: energies are sums, they need all their digits."""
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(features.float(), linear.weight.float(), linear.bias.float())


class Head(nn.Module):
    """Features (B, `num_features`) to potentials, all that K labels of `num_values` V_k need to know of the images."""

    def __init__(self, num_features: int, num_values: list[int], num_potentials: int | None = None):
        super().__init__()
        self.num_values = num_values
        self.linear = nn.Linear(num_features, num_potentials or len(num_values) * max(num_values))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return full_precision(self.linear, features)

    def score(self, potentials: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        """`log p~(x, y)` (..., B) of one-hot labels (..., B, K, V), differentiable in both."""
        raise NotImplementedError

    def distribution(self, potentials: torch.Tensor, label_sampler: str = "gibbs") -> LabelDistribution:
        """The labels given the images; `label_sampler` draws them where they interact."""
        score = partial(self.score, potentials)
        return InteractingDistribution(score, self.num_values, len(potentials), potentials.device, label_sampler)


class ProductHead(Head):
    """A product of K classifiers: `log p~(x, y) = sum_k f_k(x)[y_k]` (Kelly et al. 2021, section 3)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """f(x) (B, K, V), -inf where an attribute has fewer than V values."""
        logits = super().forward(features).unflatten(-1, (len(self.num_values), -1))
        if len(set(self.num_values)) == 1:
            return logits
        return logits.masked_fill(~existing_values(self.num_values, logits.device), -torch.inf)

    def score(self, potentials: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        return ProductDistribution(potentials).score(encoded)

    def distribution(self, potentials: torch.Tensor, label_sampler: str = "gibbs") -> LabelDistribution:
        return ProductDistribution(potentials)


class PairwiseHead(ProductHead):
    """A Boltzmann machine whose biases are the classifiers: `sum_k f_k(x)[y_k] + sum_{k<l} W_kl[y_k, y_l]`."""

    def __init__(self, num_features, num_values):
        super().__init__(num_features, num_values)
        size = len(num_values) * max(num_values)
        self.interaction = nn.Parameter(torch.zeros(size, size))

    def score(self, potentials: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        k = len(self.num_values)
        weight = self.interaction.float().unflatten(0, (k, -1)).unflatten(-1, (k, -1))
        between = 1 - torch.eye(k, device=weight.device)
        weight = (weight + weight.permute(2, 3, 0, 1)) / 2 * between[:, None, :, None]
        interaction = torch.einsum("...kv,kvlw,...lw->...", encoded, weight, encoded) / 2
        return super().score(potentials, encoded) + interaction

    distribution = Head.distribution


class DotHead(Head):
    """An inner product `<phi(x), psi(y)>` of features and a network over the labels."""

    def __init__(self, num_features, num_values, hidden_size=HIDDEN_SIZE):
        super().__init__(num_features, num_values, hidden_size)
        self.psi = nn.Sequential(
            nn.Linear(len(num_values) * max(num_values), hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def score(self, potentials: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(full_precision(self.psi[0], encoded.flatten(-2)))
        return (potentials * full_precision(self.psi[2], hidden)).sum(-1)


class MlpHead(Head):
    """A network over features and labels together: `log p~(x, y) = w . silu(A silu(phi(x) + B y) + a)`."""

    def __init__(self, num_features, num_values, hidden_size=HIDDEN_SIZE):
        super().__init__(num_features, num_values, hidden_size)
        self.labels = nn.Linear(len(num_values) * max(num_values), hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.energy = nn.Linear(hidden_size, 1)

    def score(self, potentials: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(potentials + full_precision(self.labels, encoded.flatten(-2)))
        return full_precision(self.energy, F.silu(full_precision(self.hidden, hidden)))[..., 0]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean of `-log p(y_k|x)` in nats over the labels that are present; logits (B, K, V), labels (B, K)."""
    present = (labels >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum") / present


HEADS = {"product": ProductHead, "pairwise": PairwiseHead, "dot": DotHead, "mlp": MlpHead}
