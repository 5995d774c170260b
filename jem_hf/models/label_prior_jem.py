"""A model of the labels alone: completes requests that leave attributes open."""

import torch
import torch.nn.functional as F
from torch import nn


class PairwiseLabelPrior(nn.Module):
    """
    A pairwise Markov random field over K labels, `log p(y) = sum_k b[y_k] + sum_{k<l} W[y_k, y_l] - log Z`.

    Fitted by pseudo-likelihood (Besag 1975) and sampled by Gibbs. The parameters are buffers: they travel with the
    checkpoint, and the optimiser of the energy leaves them alone.

    Args:
        num_values (`list[int]`): Number of values V_k of each of the K labels.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, num_values: list[int]):
        super().__init__()
        self.num_values = num_values
        size = sum(num_values)
        self.register_buffer("weight", torch.zeros(size, size))
        self.register_buffer("bias", torch.zeros(size))

    def _one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        """(N, K) labels to (N, sum V_k); all zero where the label is missing."""
        columns = [F.one_hot(labels[:, k] + 1, v + 1)[:, 1:] for k, v in enumerate(self.num_values)]
        return torch.cat(columns, dim=1).to(self.weight.dtype)

    def fit(self, labels: torch.Tensor, l2: float = 1e-5, max_steps: int = 100) -> "PairwiseLabelPrior":
        """Fit by L-BFGS to labels (N, K), of which missing ones (-1) neither predict nor are predicted."""
        labels = labels.cpu()
        one_hot = self._one_hot(labels)
        between = 1 - torch.block_diag(*(torch.ones(v, v) for v in self.num_values))
        weight = torch.zeros_like(self.weight, device="cpu", requires_grad=True)
        bias = torch.zeros_like(self.bias, device="cpu", requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_steps, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            scores = bias + one_hot @ ((weight + weight.T) / 2 * between)
            loss = l2 * weight.square().sum() + l2 * bias.square().sum()
            for k, block in enumerate(scores.split(self.num_values, dim=1)):
                if (labels[:, k] >= 0).any():
                    loss = loss + F.cross_entropy(block, labels[:, k], ignore_index=-1)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        self.weight.copy_((weight + weight.T).detach() / 2 * between)
        self.bias.copy_(bias.detach())
        return self

    @torch.no_grad()
    def sample(self, labels: torch.Tensor, num_sweeps: int = 30, generator=None) -> torch.Tensor:
        """
        Labels (N, K) with every -1 replaced by a Gibbs draw given the rest.

        Starts from uniform values and cools down to temperature 1 over the first four fifths of the sweeps: labels
        that exclude each other would lock the chain otherwise.
        """
        free, given = labels < 0, self._one_hot(labels).bool().T.contiguous()
        free_columns = free.any(0).nonzero()[:, 0].tolist()
        if not free_columns:
            return labels
        start = [torch.randint(v, (len(labels),), generator=generator, device=labels.device) for v in self.num_values]
        one_hot = self._one_hot(torch.where(free, torch.stack(start, dim=1), labels)).float().T.contiguous()
        scores, bias = torch.empty_like(one_hot), self.bias.float()[:, None]
        rows = [each.split(self.num_values) for each in (one_hot, scores, self.weight.float())]
        blocks = [[each[k] for each in rows] for k in free_columns]
        for sweep in range(num_sweeps):
            inverse_temperature = min(1.0, (sweep + 1) / (0.8 * num_sweeps))
            scores.uniform_(generator=generator).log_().neg_().log_()  # -Gumbel's noise: the highest sum is a draw
            scores.div_(-inverse_temperature).add_(bias).masked_fill_(given, torch.inf)
            for own, own_scores, weight in blocks:
                own_scores.addmm_(weight, one_hot)
                torch.eq(own_scores, own_scores.amax(0), out=own)
        return torch.stack([block.argmax(0) for block in rows[0]], dim=1)
