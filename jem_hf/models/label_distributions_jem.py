"""Labels given images: `log p~(x, y)` of B images as a function of their labels, and what follows from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F

from .label_samplers_jem import LABEL_SAMPLERS, draw_categorical, one_hot, start_labels, with_all_values

MAX_ENUMERATED = 1024  # label vectors, up to which sums over labels are exact: a few milliseconds for a batch of 64
NUM_SWEEPS = 32  # of Gibbs where there are more
NUM_CHAINS = 4  # whose spread is the standard error


@dataclass(eq=False)
class ProductDistribution:
    """
    Labels that are independent given the image: `log p~(x, y) = sum_k f_k(x)[y_k]` (Kelly et al. 2021, section 3), by
    logits f(x) (B, K, V), -inf where an attribute has fewer than V values.
    """

    logits: torch.Tensor
    is_exact = True  # whether labels that are missing are summed out exactly

    @property
    def num_values(self) -> list[int]:
        """V_k of each of the K attributes."""
        return (self.logits[0] > -torch.inf).sum(-1).tolist()

    def log_joint(self, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """
        `log p~(x, y_O)` (B,) of labels (B, K); labels of -1 are missing and summed out.

        With weights (B, K) it is `log p~(x) + sum_{k in O} w_k log p(y_k|x)`.
        """
        observed = self.logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        missing = self.logits.logsumexp(-1)
        if weights is not None:
            observed = missing + weights * (observed - missing)
        return torch.where(labels >= 0, observed, missing).sum(-1)

    def score(self, encoded: torch.Tensor) -> torch.Tensor:
        """`log p~(x, y)` (..., B) of one-hot labels (..., B, K, V), differentiable in them."""
        return (self.logits.masked_fill(self.logits == -torch.inf, 0.0) * encoded).sum((-2, -1))

    def log_marginal(self) -> torch.Tensor:
        """`log p~(x)` (B,)."""
        return self.logits.logsumexp(-1).sum(-1)

    def conditional_logits(self, labels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(B, K, V), whose softmax is `p(y_k | x, all other labels)`, from labels (B, K)."""
        return self.logits

    def marginal_logits(self, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The prediction, `p(y_k | x, y_O)` where labels (B, K) are given (-1: missing).

        Returns:
            (B, K, V), whose softmax it is, and the standard error of those probabilities, here 0.
        """
        logits = self.logits
        if labels is not None:
            elsewhere = F.one_hot(labels.clamp(min=0), logits.shape[-1]) == 0
            logits = logits.masked_fill(elsewhere & (labels >= 0)[..., None], -torch.inf)
        return logits, torch.zeros_like(logits)

    def draw(
        self,
        labels: torch.Tensor,
        generator: torch.Generator | None = None,
        start: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """
        Labels (B, K) with every -1 replaced by a draw from `p(y | x, y_O)^(1/temperature)`.

        `start` (B, K) are labels of a chain that goes on; here none is needed.
        """
        logits = self.logits.detach()
        return torch.where(labels >= 0, labels, draw_categorical(logits / temperature, generator))


@dataclass(eq=False)
class InteractingDistribution:
    """
    Labels that depend on each other given the image.

    Sums over at most `MAX_ENUMERATED` label vectors are exact. Longer ones are estimated by Gibbs sampling from a
    fixed seed: the same batch of images has the same energies and predictions each time.

    Args:
        score: One-hot labels (..., B, K, V) to `log p~(x, y)` (..., B).
        num_values (`list[int]`): V_k of each of the K attributes.
        batch_size (`int`), device: Of the images.
        sampler (`str`, defaults to `"gibbs"`): That draws labels, one of [`LABEL_SAMPLERS`](label_samplers_jem.py).

    Methods are those of [`ProductDistribution`].
    """

    score: Callable[[torch.Tensor], torch.Tensor]
    num_values: list[int]
    batch_size: int
    device: torch.device
    sampler: str = "gibbs"

    @property
    def is_exact(self) -> bool:
        return math.prod(self.num_values) <= MAX_ENUMERATED

    def log_joint(self, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Raises `ValueError` for weights, which need labels that are independent given the image."""
        if weights is not None:
            raise ValueError("weights of attributes need the head 'product': leave them out, or raise guidance_scale")
        if (labels >= 0).all():
            return self.score(one_hot(labels, self.num_values))
        return self._enumerated(labels)[1].logsumexp(0) if self.is_exact else self._annealed(labels)

    def log_marginal(self) -> torch.Tensor:
        return self.log_joint(self._missing())

    def conditional_logits(self, labels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Missing labels are drawn."""
        encoded, width = one_hot(self.draw(labels, generator), self.num_values), max(self.num_values)
        scores = [self.score(with_all_values(encoded, k, num)).T for k, num in enumerate(self.num_values)]
        return torch.stack([F.pad(each, (0, width - each.shape[1]), value=-torch.inf) for each in scores], dim=1)

    @torch.no_grad()
    def marginal_logits(self, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The standard error is 0 where sums are exact."""
        labels = self._missing() if labels is None else labels
        if self.is_exact:
            vectors, scores = self._enumerated(labels)
            probabilities = torch.einsum("nb,nkv->bkv", scores.softmax(0), one_hot(vectors, self.num_values))
            return probabilities.log(), torch.zeros_like(probabilities)
        generator, given = torch.Generator(self.device).manual_seed(0), one_hot(labels, self.num_values)
        chains = torch.zeros(NUM_CHAINS, *given.shape, device=self.device)
        for chain in chains:
            current = self._sample("gibbs", labels, NUM_SWEEPS // 4, generator)
            for _ in range(NUM_SWEEPS):
                current = self._sample("gibbs", labels, 1, generator, current)
                chain += self.conditional_logits(current).softmax(-1)
        chains = torch.where((labels < 0)[..., None], chains / NUM_SWEEPS, given)
        return chains.mean(0).log(), chains.std(0) / NUM_CHAINS**0.5

    @torch.no_grad()
    def draw(
        self,
        labels: torch.Tensor,
        generator: torch.Generator | None = None,
        start: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Exact by enumeration, else one sweep of the label sampler from `start`, or many from uniform labels."""
        if self.is_exact:
            vectors, scores = self._enumerated(labels)
            return vectors[draw_categorical(scores.T / temperature, generator)]
        return self._sample(self.sampler, labels, NUM_SWEEPS if start is None else 1, generator, start, temperature)

    def _missing(self) -> torch.Tensor:
        return torch.full((self.batch_size, len(self.num_values)), -1, device=self.device)

    def _enumerated(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All N label vectors (N, K) and their scores (N, B), -inf where they differ from the labels (B, K) given."""
        vectors = torch.tensor(list(product(*map(range, self.num_values))), device=self.device)
        encoded = one_hot(vectors, self.num_values)[:, None].expand(-1, self.batch_size, -1, -1)
        allowed = ((labels < 0) | (labels == vectors[:, None])).all(-1)
        return vectors, self.score(encoded).masked_fill(~allowed, -torch.inf)

    def _sample(self, sampler, labels, num_sweeps, generator, start=None, temperature=1.0) -> torch.Tensor:
        def log_prob(encoded):
            return self.score(encoded.unflatten(0, (-1, self.batch_size))).flatten()

        # a sweep visits each of the K labels once; Gibbs with gradients proposes one change a step
        num_steps = num_sweeps if sampler == "gibbs" else num_sweeps * len(self.num_values)
        settings = dict(num_steps=num_steps, temperature=temperature, start=start, generator=generator)
        return LABEL_SAMPLERS[sampler](log_prob, labels, self.num_values, **settings)[0]

    def _annealed(self, labels: torch.Tensor) -> torch.Tensor:
        """
        `log p~(x, y_O)` by annealed importance sampling over the labels (Neal 2001), too low on average.

        Its gradient is the one of `log p~(x, y)` at the labels that were drawn, for `grad log p~(x, y_O)` is the mean
        of those over `p(y | x, y_O)` (Fisher's identity).
        """
        generator = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            current = start_labels(labels, self.num_values, generator=generator)
            sizes = torch.tensor(self.num_values, device=self.device).float()
            value = torch.where(labels < 0, sizes.log(), 0.0).sum(-1)
            for step in range(NUM_SWEEPS):
                value = value + self.score(one_hot(current, self.num_values)) / NUM_SWEEPS
                current = self._sample("gibbs", labels, 1, generator, current, temperature=NUM_SWEEPS / (step + 1))
        score = self.score(one_hot(current, self.num_values))
        return value + score - score.detach()


LabelDistribution = ProductDistribution | InteractingDistribution
