"""How strange an image is: several scores of one energy, and how far they are from those of training images."""

from typing import Any

import torch
from torch import nn

TIMES = (0.5, 0.7, 0.8, 0.9, 0.97)  # of the way from noise to the image, at which the matching error is taken
DECAY_START = 0.8  # of the warm-up's target, see `equilibrium_matching`
NUM_NOISES = 3
TINY = 1e-6


def num_scores(has_autoencoder: bool) -> int:
    """S, of [`image_scores`]."""
    return 2 + len(TIMES) + 1 + 2 * has_autoencoder


def image_scores(model: Any, pixel_values: torch.Tensor, quick: bool = False) -> torch.Tensor:
    """
    Scores (B, S) of images (B, C, H, W) in [-1, 1]; with `quick` those alone that need no gradient.

    `log p~(x)`; the logarithms of the norm of its gradient (the score), of the matching error at five places between
    noise and the image (the warm-up's own loss on this image, a denoiser's error; compare Mahmood et al. 2021, arXiv
    2010.13132), of the image's sharpness, and, where there is an autoencoder, of its squared error and of the
    sharpness of what it gives back. Without the sharpness slight blur goes unnoticed: it makes all the rest easier.
    """
    with torch.no_grad():
        codes = model.encode(pixel_values)
        seen = [_log(_sharpness(pixel_values))]
        if model.autoencoder is not None:
            images = model.decode(codes)
            seen += [_log((images - pixel_values).square().flatten(1).mean(1)), _log(_sharpness(images))]
        if quick:
            return torch.stack([model.label_distribution(codes).log_marginal().float(), *seen], dim=1)
    log_p, gradient = _gradient(model, codes)
    scores = [log_p, _log(gradient.flatten(1).norm(dim=1))]
    generator = torch.Generator().manual_seed(0)  # the same noise for every image
    noises = torch.randn(NUM_NOISES, *codes.shape[1:], generator=generator).to(codes)
    for t in TIMES:
        decay = min(1.0, (1 - t) / (1 - DECAY_START))
        errors = []
        for noise in noises:
            gradient = _gradient(model, torch.lerp(noise.expand_as(codes), codes, t))[1]
            errors.append((gradient - decay * (codes - noise)).square().flatten(1).mean(1))
        scores.append(_log(torch.stack(errors).mean(0)))
    return torch.stack([*scores, *seen], dim=1)


def _gradient(model: Any, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`log p~` (B,) of codes and its gradient by them."""
    with torch.enable_grad():
        codes = codes.detach().requires_grad_(True)
        log_p = model.label_distribution(codes).log_marginal()
        (gradient,) = torch.autograd.grad(log_p.sum(), codes)
    return log_p.detach().float(), gradient.float()


def _sharpness(x: torch.Tensor) -> torch.Tensor:
    """Mean square (B,) of the Laplacian of gray images."""
    gray = x.float().mean(1)
    inner = gray[:, 1:-1, 1:-1]
    neighbours = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    return (neighbours - 4 * inner).square().flatten(1).mean(1)


def _log(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=TINY).log()


class OutlierScore(nn.Module):
    """
    The Mahalanobis distance of an image's scores from those of training images, and its percentile among these.

    Args:
        num_scores (`int`): S, of [`image_scores`].
    """

    mean: torch.Tensor
    precision: torch.Tensor
    quantiles: torch.Tensor

    def __init__(self, num_scores: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_scores))
        self.register_buffer("precision", torch.eye(num_scores))
        self.register_buffer("quantiles", torch.zeros(1001))

    @property
    def is_fitted(self) -> bool:
        """Whether it has seen training images."""
        return bool(self.quantiles[-1] > 0)

    def fit(self, scores: torch.Tensor) -> None:
        """Take scores (N, S) of training images; half of them give the distances' percentiles."""
        to_fit, rest = scores.double()[::2], scores.double()[1::2]
        centred = to_fit - to_fit.mean(0)
        covariance = centred.T @ centred / len(to_fit)
        covariance += 1e-6 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        self.mean.copy_(to_fit.mean(0))
        self.precision.copy_(torch.linalg.inv(covariance))
        self.quantiles.copy_(self.distance(rest).quantile(torch.linspace(0, 1, 1001).to(scores)))

    def distance(self, scores: torch.Tensor, quick: bool = False) -> torch.Tensor:
        """(B,), 0 or more, of scores (B, S), with `quick` of those alone that are had without a gradient."""
        mean, precision = self.mean.double(), self.precision.double()
        if quick:
            kept = torch.ones_like(mean, dtype=torch.bool)
            kept[1 : 2 + len(TIMES)] = False
            mean, precision = mean[kept], torch.linalg.inv(torch.linalg.inv(precision)[kept][:, kept])
        centred = scores.double() - mean
        return torch.einsum("bi,ij,bj->b", centred, precision, centred).clamp(min=0).sqrt().float()

    def percentile(self, distance: torch.Tensor) -> torch.Tensor:
        """The share, 0 to 1, of training images that are less strange."""
        return torch.searchsorted(self.quantiles, distance).clamp(max=1000) / 1000
