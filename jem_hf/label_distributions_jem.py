"""Labels given images: `log p~(x, y)` of B images as a function of their labels, and what follows from it."""

import math
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F

MAX_ENUMERATED = 1024  # label vectors, up to which sums over labels are exact
NUM_SWEEPS = 32  # Gibbs sweeps where there are more
NUM_CHAINS = 4


def one_hot(labels: torch.Tensor, num_values: list[int]) -> torch.Tensor:
    """Labels (..., K) to floats (..., K, V) with V = max V_k."""
    return F.one_hot(labels, max(num_values)).float()


class ProductDistribution:
    """
    Labels that are independent given the image: `log p~(x, y) = sum_k f_k(x)[y_k]` (Kelly et al. 2021, section 3).

    Args:
        logits (`torch.Tensor` of shape (B, K, V)): f(x), -inf where an attribute has fewer than V values.
    """

    is_exact = True  # whether labels that are missing are summed out exactly

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

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

    def log_marginal(self) -> torch.Tensor:
        """`log p~(x)` (B,)."""
        return self.logits.logsumexp(-1).sum(-1)

    def conditional_logits(self, labels: torch.Tensor, generator=None) -> torch.Tensor:
        """(B, K, V), whose softmax is `p(y_k | x, all other labels)`, from labels (B, K)."""
        return self.logits

    def marginal_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, K, V), whose softmax is the prediction `p(y_k | x)`, and the standard error of those probabilities."""
        return self.logits, torch.zeros_like(self.logits)

    def draw(self, labels: torch.Tensor, generator=None, start: torch.Tensor | None = None) -> torch.Tensor:
        """Labels (B, K) with every -1 replaced by an exact draw from `p(y_k|x)`; `start` is not needed."""
        draws = torch.multinomial(self.logits.detach().softmax(-1).flatten(0, 1), 1, generator=generator)
        return torch.where(labels >= 0, labels, draws.view_as(labels))


class InteractingDistribution:
    """
    Labels that depend on each other given the image.

    Sums over at most `MAX_ENUMERATED` label vectors are exact. Longer ones are estimated by Gibbs sampling from a
    fixed seed: the same batch of images has the same energies and predictions each time.

    Args:
        score: One-hot labels (..., B, K, V) to `log p~(x, y)` (..., B).
        num_values (`list[int]`): V_k of each of the K attributes.
        batch_size (`int`), device: Of the images.
    """

    def __init__(self, score: Callable[[torch.Tensor], torch.Tensor], num_values: list[int], batch_size: int, device):
        self.score, self.num_values, self.batch_size, self.device = score, num_values, batch_size, device
        self.is_exact = math.prod(num_values) <= MAX_ENUMERATED

    def log_joint(self, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """
        `log p~(x, y_O)` (B,) of labels (B, K); labels of -1 are missing and summed out.

        Where the sum is too long it is estimated by annealed importance sampling over the labels (Neal 2001), which
        is too low on average. Its gradient is the one of `log p~(x, y)` at the labels that were drawn, for
        `grad log p~(x, y_O)` is the mean of those over `p(y | x, y_O)` (Fisher's identity).

        Raises:
            ValueError: weights, which need labels that are independent given the image.
        """
        if weights is not None:
            raise ValueError("weights of attributes need the head 'product': leave them out, or raise guidance_scale")
        if (labels >= 0).all():
            return self.score(one_hot(labels, self.num_values))
        if not self.is_exact:
            return self._annealed(labels)
        vectors, scores = self._enumerated()
        allowed = ((labels < 0) | (labels == vectors[:, None])).all(-1)
        return scores.masked_fill(~allowed, -torch.inf).logsumexp(0)

    def log_marginal(self) -> torch.Tensor:
        """`log p~(x)` (B,): `log_joint` of labels that are all missing."""
        return self.log_joint(self._missing())

    def conditional_logits(self, labels: torch.Tensor, generator=None) -> torch.Tensor:
        """(B, K, V), whose softmax is `p(y_k | x, all other labels)`, from labels (B, K); missing ones are drawn."""
        encoded = one_hot(self.draw(labels, generator), self.num_values)
        logits = [self._conditional(encoded, k) for k in range(len(self.num_values))]
        width = max(self.num_values)
        return torch.stack([F.pad(each, (0, width - each.shape[1]), value=-torch.inf) for each in logits], dim=1)

    @torch.no_grad()
    def marginal_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, K, V), whose softmax is the prediction `p(y_k | x)`, and the standard error of those probabilities."""
        if self.is_exact:
            vectors, scores = self._enumerated()
            probabilities = torch.einsum("nb,nkv->bkv", scores.softmax(0), one_hot(vectors, self.num_values))
            return probabilities.log(), torch.zeros_like(probabilities)
        generator = self._generator()
        chains = []
        for _ in range(NUM_CHAINS):
            labels, total = self._uniform(self._missing(), generator), 0.0
            for sweep in range(NUM_SWEEPS):
                labels = self._sweep(labels, self._missing(), generator)
                if sweep >= NUM_SWEEPS // 4:
                    total = total + self.conditional_logits(labels).softmax(-1)
            chains.append(total / (NUM_SWEEPS - NUM_SWEEPS // 4))
        chains = torch.stack(chains)
        return chains.mean(0).log(), chains.std(0) / NUM_CHAINS**0.5

    @torch.no_grad()
    def draw(self, labels: torch.Tensor, generator=None, start: torch.Tensor | None = None) -> torch.Tensor:
        """
        Labels (B, K) with every -1 replaced by a draw from `p(y | x, y_O)`.

        Exact by enumeration, else by Gibbs: one sweep from `start` (B, K), or `NUM_SWEEPS` from uniform labels.
        """
        if self.is_exact:
            vectors, scores = self._enumerated()
            allowed = ((labels < 0) | (labels == vectors[:, None])).all(-1)
            rows = torch.multinomial(scores.masked_fill(~allowed, -torch.inf).softmax(0).T, 1, generator=generator)
            return vectors[rows[:, 0]]
        current = self._uniform(labels, generator) if start is None else torch.where(labels >= 0, labels, start)
        for _ in range(NUM_SWEEPS if start is None else 1):
            current = self._sweep(current, labels, generator)
        return current

    def _missing(self) -> torch.Tensor:
        return torch.full((self.batch_size, len(self.num_values)), -1, device=self.device)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)

    def _enumerated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All N label vectors (N, K) and their scores (N, B)."""
        vectors = torch.tensor(list(product(*map(range, self.num_values))), device=self.device)
        encoded = one_hot(vectors, self.num_values)[:, None]
        return vectors, self.score(encoded.expand(-1, self.batch_size, -1, -1))

    def _conditional(self, encoded: torch.Tensor, k: int) -> torch.Tensor:
        """`log p~(x, y)` (B, V_k) with label k at each of its values and the others as in the one-hot (B, K, V)."""
        values = torch.eye(encoded.shape[-1], device=self.device)[: self.num_values[k], None]
        options = encoded.repeat(self.num_values[k], 1, 1, 1)
        options[:, :, k] = values
        return self.score(options).T

    def _uniform(self, labels: torch.Tensor, generator) -> torch.Tensor:
        sizes = torch.tensor(self.num_values, device=self.device)
        draws = (torch.rand(labels.shape, generator=generator, device=self.device) * sizes).long()
        return torch.where(labels >= 0, labels, draws)

    def _sweep(self, current: torch.Tensor, labels: torch.Tensor, generator, inverse_temperature=1.0) -> torch.Tensor:
        """Every label that is -1 in `labels` drawn anew given all others in `current`, in turn."""
        current, encoded = current.clone(), one_hot(current, self.num_values)
        for k in (labels < 0).any(0).nonzero()[:, 0].tolist():
            probabilities = (inverse_temperature * self._conditional(encoded, k)).softmax(-1)
            draws = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            current[:, k] = torch.where(labels[:, k] < 0, draws, current[:, k])
            encoded[:, k] = F.one_hot(current[:, k], encoded.shape[-1]).to(encoded.dtype)
        return current

    def _annealed(self, labels: torch.Tensor) -> torch.Tensor:
        """The value by importance weights from uniform labels on, the gradient at the last ones."""
        generator = self._generator()
        with torch.no_grad():
            current = self._uniform(labels, generator)
            sizes = torch.tensor(self.num_values, device=self.device).float()
            value = torch.where(labels < 0, sizes.log(), 0.0).sum(-1)
            for step in range(NUM_SWEEPS):
                value = value + self.score(one_hot(current, self.num_values)) / NUM_SWEEPS
                current = self._sweep(current, labels, generator, (step + 1) / NUM_SWEEPS)
        score = self.score(one_hot(current, self.num_values))
        return value + score - score.detach()
