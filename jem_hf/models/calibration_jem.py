"""Probabilities that come true: `p(y|x)` of a trained energy made softer or shifted, its `log p(x)` as it is."""

import torch
from torch import nn


class Calibration(nn.Module):
    """
    A scale s_k and a bias b_k for each attribute of the head "product", at first 1 and 0:
    `log p~(x, y) = log p~(x) + sum_k log softmax(s_k f_k(x) + b_k)[y_k]`.

    The prediction is that of a classifier scaled after training (Platt 1999; Guo et al. 2017, section 4.2); what is
    made larger or smaller by it is taken off at every image, so that the density of images is the one before.

    Args:
        num_values (`list[int]`): V_k of each of the K attributes.
    """

    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, num_values: list[int]):
        super().__init__()
        self.register_buffer("scale", torch.ones(len(num_values), 1))
        self.register_buffer("bias", torch.zeros(len(num_values), max(num_values)))

    def reset(self) -> None:
        """Change nothing, as before it was fitted."""
        self.scale.fill_(1)
        self.bias.zero_()

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """f(x) (B, K, V), -inf where an attribute has fewer than V values, to potentials of the same shape."""
        scaled = logits * self.scale.float() + self.bias.float()
        return scaled + logits.logsumexp(-1, keepdim=True) - scaled.logsumexp(-1, keepdim=True)
