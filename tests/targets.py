"""Densities that samplers are tested on, with their exact probabilities."""

from itertools import product

import torch
from scipy.stats import chisquare

FALSE_ALARM = 0.001  # probability that a right sampler fails one statistical test, were its seed not fixed


def goodness_of_fit(cells: torch.Tensor, probabilities: torch.Tensor) -> float:
    """
    p-value of Pearson's chi-square, 0 where an impossible cell was observed.

    Cells (N,) are indices of probabilities; those expected fewer than 5 times are merged.
    """
    expected = len(cells) * probabilities.double() / probabilities.double().sum()
    observed = torch.bincount(cells, minlength=len(expected)).double()
    if observed[expected == 0].any():
        return 0.0
    observed, expected = observed[expected > 0], expected[expected > 0]
    rare = expected < 5
    if rare.any():
        observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    return chisquare(observed.numpy(), expected.numpy()).pvalue


class PairwiseTarget:
    """`log p~(y)` of labels that all interact, of random size, and its exact probabilities."""

    def __init__(self, num_values, seed=0, scale=0.7):
        self.num_values = num_values
        width, generator = max(num_values), torch.Generator().manual_seed(seed)
        size = len(num_values) * width
        self.weight = scale * torch.randn(size, size, generator=generator)
        self.vectors = torch.tensor(list(product(*map(range, num_values))))  # (N, K), the last label the fastest

    def log_prob(self, one_hot):
        y = one_hot.flatten(1)
        return (y @ self.weight.to(y.dtype) * y).sum(1)

    def probabilities(self, temperature=1.0, given=None):
        one_hot = torch.nn.functional.one_hot(self.vectors, max(self.num_values)).float()
        probabilities = (self.log_prob(one_hot) / temperature).softmax(0)
        if given is not None:
            probabilities = probabilities * ((given < 0) | (self.vectors == given)).all(1)
        return probabilities / probabilities.sum()

    def cells(self, labels):
        """Index (N,) in `vectors` of labels (N, K)."""
        index = torch.zeros(len(labels), dtype=torch.long)
        for k, size in enumerate(self.num_values):
            index = index * size + labels[:, k]
        return index


class MixedTarget(PairwiseTarget):
    """`log p~(x, y) = log p~(y) - (x - m_y)^2 / (2 s_y^2)`, x of one pixel, m and s sums over the labels' values."""

    def __init__(self, num_values, seed=0):
        super().__init__(num_values, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        shape = (len(num_values), max(num_values))
        self.mean = torch.randn(shape, generator=generator)
        self.scale = 0.1 + 0.4 * torch.rand(shape, generator=generator)

    def moments(self, one_hot):
        return ((one_hot * each.to(one_hot.dtype)).sum((1, 2)) for each in (self.mean, self.scale))

    def log_joint(self, x, one_hot):
        mean, scale = self.moments(one_hot)
        return self.log_prob(one_hot) - 0.5 * ((x.flatten(1).sum(1) - mean) / scale) ** 2

    def joint_cells(self, x, labels, temperature, num_bins=4):
        """Cells (N,) of the labels and, within, of x by quantiles of p(x|y)."""
        mean, scale = self.moments(torch.nn.functional.one_hot(labels, max(self.num_values)).float())
        quantile = torch.special.ndtr((x.flatten() - mean) / (scale * temperature**0.5))
        return self.cells(labels) * num_bins + (quantile * num_bins).long().clamp(max=num_bins - 1)

    def joint_probabilities(self, temperature=1.0, given=None, num_bins=4):
        """Of the same cells."""
        one_hot = torch.nn.functional.one_hot(self.vectors, max(self.num_values)).float()
        _, scale = self.moments(one_hot)
        probabilities = self.probabilities(temperature, given) * scale
        return (probabilities / probabilities.sum()).repeat_interleave(num_bins) / num_bins
