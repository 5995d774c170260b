"""Calibration after training: logits made softer or shifted on a validation part, so that probabilities come true.

Logits have the shape (N, K, V), -inf in the places that an attribute with fewer values lacks; log-probabilities do as
well. Labels are (N, K), -1 where missing. Fit on images that are neither trained on nor tested on.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F


class TemperatureScaling:
    """
    One temperature T for all attributes: logits / T (Guo et al. 2017, section 4.2). No prediction changes its value.

    Args:
        temperature: above zero; one is the identity.
    """

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def fit(self, logits: torch.Tensor, labels: torch.Tensor) -> "TemperatureScaling":
        """
        Set the temperature to the minimum of the sum of -log p(label) over the labels plus (log T)^2 / 2.

        The second term, a standard normal prior of log T, weighs about as much as one label: it keeps T above zero
        where every label is predicted right.

        Args:
            logits: (N, K, V), -inf where a value is lacking.
            labels: (N, K), -1 for missing.

        Raises:
            ValueError: shapes that do not fit, NaN, a label of a lacking value, or no label at all.
        """
        log_temperature = torch.zeros((), dtype=torch.float64)
        _minimise(lambda x: x / log_temperature.exp(), [log_temperature], logits, labels)
        self.temperature = log_temperature.exp().item()
        return self

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (N, K, V) to calibrated logits (N, K, V)."""
        return logits / self.temperature


class AttributeScaling:
    """
    A scale and a bias for each attribute: scale_k * logits + bias_kv.

    Of a binary attribute this is Platt scaling of the log-odds (Platt 1999); of a categorical one a temperature and a
    bias for each value (Guo et al. 2017, section 4.2, vector scaling with one common scale). Scales are above zero, so
    the ranking of the images by a binary attribute stays.
    """

    def __init__(self):
        self.scale = self.bias = None

    def fit(self, logits: torch.Tensor, labels: torch.Tensor) -> "AttributeScaling":
        """
        Set `scale` (K,) and `bias` (K, V) to the minimum of the sum of -log p(label) over the labels plus
        ((log scale)^2 + |bias|^2) / 2 for each attribute.

        The second term, a standard normal prior, weighs about as much as one label of the attribute: it keeps an
        attribute without labels as it is, and one of which all labels are equal finite.

        Args:
            logits: (N, K, V), -inf where a value is lacking.
            labels: (N, K), -1 for missing.

        Raises:
            ValueError: shapes that do not fit, NaN, a label of a lacking value, or no label at all.
        """
        _check(logits, labels)
        log_scale = torch.zeros(logits.shape[1], 1, dtype=torch.float64)
        bias = torch.zeros(logits.shape[1:], dtype=torch.float64)
        _minimise(lambda x: x * log_scale.exp() + bias, [log_scale, bias], logits, labels)
        self.scale, self.bias = log_scale[:, 0].exp(), bias
        return self

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (N, K, V) to calibrated logits (N, K, V).

        Raises:
            ValueError: it is not fitted.
        """
        if self.scale is None:
            raise ValueError("this AttributeScaling has nothing to apply: call fit(logits, labels) first")
        return logits * self.scale[:, None].to(logits) + self.bias.to(logits)


def _minimise(scaled: Callable, parameters: list[torch.Tensor], logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Minimise -log p(labels) of scaled(logits) plus half the square of the parameters in place, by L-BFGS."""
    _check(logits, labels)
    lacking = logits.detach().cpu() == -torch.inf
    finite = logits.detach().double().cpu().masked_fill(lacking, 0)  # scaled -inf would have a gradient of NaN
    labels = labels.cpu().long()
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        x = scaled(finite).masked_fill(lacking, -torch.inf)
        nll = F.cross_entropy(x.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
        loss = nll + sum(parameter.square().sum() for parameter in parameters) / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    for parameter in parameters:
        parameter.requires_grad_(False)


def _check(logits: torch.Tensor, labels: torch.Tensor) -> None:
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} must be (N, K, V) and labels {tuple(labels.shape)} (N, K)")
    if logits.isnan().any() or (logits == torch.inf).any():
        raise ValueError("logits contain NaN or +inf")
    present = labels >= 0
    if not present.any():
        raise ValueError("there is no label to fit to: all are missing")
    if (labels >= logits.shape[2]).any():
        raise ValueError(f"a label is {labels.max()}, but the largest number of values is {logits.shape[2]}")
    if (logits.gather(-1, labels.clamp(min=0).long()[..., None])[..., 0][present] == -torch.inf).any():
        raise ValueError("a label names a value whose logit is -inf: the attribute lacks it")
