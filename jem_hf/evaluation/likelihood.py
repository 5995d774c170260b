"""Bits per dimension of images under a model, whose log Z is estimated by annealed importance sampling."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..models.image_samplers_jem import LogDensity
from ..models.modeling_jem import JemModel
from ..training.augmentation import dequantise
from .annealing import (
    AnnealingSettings,
    LogZ,
    adapt_step_sizes,
    annealed_importance_sampling,
    log_p_of,
    reverse_annealed_importance_sampling,
)


@dataclass(frozen=True)
class BitsPerDimension:
    """
    Bits per dimension: the mean over images of `per_image` (N,), with the mean of the estimates of log Z.

    `low` and `high` are the same with the ends of the 95% intervals of log Z, of its lowest and its highest estimate.
    They say how well Z is known, not how much other images would differ.
    """

    estimate: float
    low: float
    high: float
    per_image: torch.Tensor


@torch.no_grad()
def bits_per_dimension(
    log_density: LogDensity,
    images: torch.Tensor,
    *log_z: LogZ,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> BitsPerDimension:
    """
    What 8-bit images cost under a density of pixels in [-1, 1], an upper bound (Theis et al. 2016, arXiv 1511.01844).

    An image i is the cell of all `x = 2 (i + u) / 256 - 1`, u in [0, 1]^D: D sides of 1/128. Its probability is the
    integral of the density p over the cell, `P(i) = 128^-D E_u p(x)`, so by Jensen's inequality

        -log2 P(i) / D  <=  7 + (log Z - E_u log p~(x)) / (D log 2),

    with one draw of u an image here. The uniform density of the box, `log p = -D log 2`, has 8 bits, as it should.

    Args:
        log_density: Function from x (B, C, H, W) to the unnormalised log density (B,), in nats.
        images (`torch.Tensor` of shape (N, C, H, W)): uint8.
        log_z (`LogZ`): One or more of the same density: a forward and a reverse one bracket it.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are uint8, not {images.dtype}")
    if not log_z:
        raise ValueError("give one LogZ or more: forward, reverse, or both")
    batches = (dequantise(batch, generator) for batch in images.split(batch_size))
    log_p = torch.cat([log_p_of(log_density, x) for x in batches])
    nats_per_bit = images[0].numel() * math.log(2)

    def bits(log_z):
        return 7 + (log_z - log_p) / nats_per_bit

    per_image = bits(sum(z.estimate for z in log_z) / len(log_z))
    low = min(z.estimate - 1.96 * z.standard_error for z in log_z)
    high = max(z.estimate + 1.96 * z.standard_error for z in log_z)
    return BitsPerDimension(per_image.mean().item(), bits(low).mean().item(), bits(high).mean().item(), per_image)


def estimate_likelihood(
    model: JemModel,
    images: torch.Tensor,
    num_chains: int = 16,
    num_temperatures: int = 200,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """
    Bits per dimension of images under p(x) over the box [-1, 1]^D, by chains from uniform noise to the model and back.

    Args:
        images (`torch.Tensor` of shape (N, C, H, W)): uint8.
        num_chains (`int`): Each way; two or more.
        num_temperatures (`int`): More bring the two estimates of log Z together.
        progress: Called with the steps done and the steps in all.

    Returns:
        "bits_per_dimension" with "low" and "high" (see [`BitsPerDimension`]); "log_z_forward" and "log_z_reverse" in
        nats, and the smaller "effective_sample_size" of the two, "num_images", "num_chains" and
        "num_temperatures".
    """
    done = 0

    def step(*_):
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, 3 * num_temperatures)

    generator = torch.Generator(model.device).manual_seed(seed)
    log_density, images = model.log_marginal, images.to(model.device)
    settings, shape = AnnealingSettings(num_temperatures=num_temperatures), (num_chains, *images.shape[1:])
    common = dict(generator=generator, callback=step)
    few = (min(4, num_chains), *shape[1:])  # which suffice to find step sizes
    settings = adapt_step_sizes(log_density, few, settings, device=model.device, **common)
    forward = annealed_importance_sampling(log_density, shape, settings, device=model.device, **common)
    reverse = reverse_annealed_importance_sampling(log_density, forward.samples, settings, **common)
    bits = bits_per_dimension(log_density, images, forward, reverse, generator=generator)
    return {
        "bits_per_dimension": bits.estimate,
        "low": bits.low,
        "high": bits.high,
        "log_z_forward": forward.estimate,
        "log_z_reverse": reverse.estimate,
        "effective_sample_size": min(forward.effective_sample_size, reverse.effective_sample_size),
        "num_images": len(images),
        "num_chains": num_chains,
        "num_temperatures": num_temperatures,
    }
