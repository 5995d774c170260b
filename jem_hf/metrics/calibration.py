"""Calibration after training: logits made softer or shifted on a validation part, so that probabilities come true.

Logits have the shape (N, K, V), -inf in the places that an attribute with fewer values lacks; log-probabilities do as
well. Labels are (N, K), -1 where missing. Fit on images that are neither trained on nor tested on.

scikit-learn's scalings wrap estimators and take neither logits, nor labels of which some are missing.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


class Scaling:
    """What the scalings share: they are fitted by L-BFGS, and are the identity where there is no label."""

    parameters: Sequence[torch.Tensor] = ()

    def fit(self, logits: torch.Tensor, labels: torch.Tensor) -> "Scaling":
        """
        Set the parameters to the minimum of the sum of -log p(label) over the labels plus half their sum of squares.

        The second term, a standard normal prior, weighs about as much as one label: it keeps a temperature above zero
        where every label is predicted right, an attribute without labels as it is, and one of which all labels are
        equal finite. Raises `ValueError` for shapes that do not fit, NaN, or a label of a lacking value.
        """
        _check(logits, labels)
        lacking = logits.detach().cpu() == -torch.inf
        finite = logits.detach().double().cpu().masked_fill(lacking, 0)  # scaled -inf would have a gradient of NaN
        targets = labels.cpu().long().flatten()
        shapes = self.shapes(*logits.shape[1:])
        self.parameters = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        settings = dict(max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")
        optimizer = torch.optim.LBFGS(self.parameters, **settings)

        def closure():
            optimizer.zero_grad()
            x = self(finite).masked_fill(lacking, -torch.inf)
            nll = F.cross_entropy(x.flatten(0, 1), targets, ignore_index=-1, reduction="sum")
            loss = nll + sum(parameter.square().sum() for parameter in self.parameters) / 2
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        self.parameters = [parameter.detach() for parameter in self.parameters]
        return self

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (N, K, V) to calibrated logits (N, K, V). Raises `ValueError` before it is fitted."""
        if not self.parameters:
            raise ValueError(f"this {type(self).__name__} has nothing to apply: call fit(logits, labels) first")
        return self.scaled(logits, *self.parameters)


class TemperatureScaling(Scaling):
    """One temperature T for all attributes: logits / T (Guo et al. 2017, section 4.2). No predicted value changes."""

    @property
    def temperature(self) -> float:
        return self.parameters[0].exp().item()

    def shapes(self, num_attributes, num_values):
        return [()]

    def scaled(self, logits, log_temperature):
        return logits / log_temperature.exp().to(logits)


class AttributeScaling(Scaling):
    """
    A scale (K,) and a bias (K, V) for each attribute: scale_k * logits + bias_kv.

    Of a binary attribute this is Platt scaling of the log-odds (Platt 1999); of a categorical one a temperature and a
    bias for each value (Guo et al. 2017, section 4.2, vector scaling with one common scale). Scales are above zero, so
    the ranking of the images by a binary attribute stays.
    """

    @property
    def scale(self) -> torch.Tensor:
        return self.parameters[0][:, 0].exp()

    @property
    def bias(self) -> torch.Tensor:
        return self.parameters[1]

    def shapes(self, num_attributes, num_values):
        return [(num_attributes, 1), (num_attributes, num_values)]

    def scaled(self, logits, log_scale, bias):
        return logits * log_scale.exp().to(logits) + bias.to(logits)


def _check(logits: torch.Tensor, labels: torch.Tensor) -> None:
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} must be (N, K, V) and labels {tuple(labels.shape)} (N, K)")
    if logits.isnan().any() or (logits == torch.inf).any():
        raise ValueError("logits contain NaN or +inf")
    if (labels >= logits.shape[2]).any():
        raise ValueError(f"a label is {labels.max()}, but the largest number of values is {logits.shape[2]}")
    of_label = logits.gather(-1, labels.clamp(min=0).long()[..., None])[..., 0]
    if (of_label[labels >= 0] == -torch.inf).any():
        raise ValueError("a label names a value whose logit is -inf: the attribute lacks it")
