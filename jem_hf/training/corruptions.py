"""
Broken pictures: what contrastive divergence must learn to be improbable, and chains alone hardly ever find.

Each kind is a function of images (B, C, H, W) in [-1, 1] and a generator. Never among them: pictures that are upside
down, inverted or of something else, with which an energy is put to the test.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur


def blurred(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian, of a sigma from 1 to 5% of the size, one a batch."""
    sigma = x.shape[-1] * (0.01 + 0.04 * _uniform((1,), generator).item())
    size = 2 * int(2.5 * sigma + 0.5) + 1
    return gaussian_blur(x, [size, size], [sigma, sigma])


def noisy(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal noise of a standard deviation from .02 to .32."""
    scale = 0.02 + 0.3 * _uniform((len(x), 1, 1, 1), generator)
    return (x + scale * torch.empty_like(x).normal_(generator=generator)).clamp(-1, 1)


def shuffled(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """2x2 or 4x4 patches in another order, one a batch."""
    num = 2 if _uniform((1,), generator).item() < 0.5 else 4
    return shuffle_patches(x, torch.randperm(num**2, generator=generator, device=generator.device))


def shuffle_patches(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The patches of a square grid in another order."""
    num = int(len(order) ** 0.5)
    patches = x.unfold(2, x.shape[2] // num, x.shape[2] // num).unfold(3, x.shape[3] // num, x.shape[3] // num)
    patches = patches.flatten(2, 3)[:, :, order].unflatten(2, (num, num))
    rows = patches.movedim(4, 3).flatten(4, 5).flatten(2, 3)
    return F.interpolate(rows, x.shape[-2:]) if rows.shape != x.shape else rows


def quadrants(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each quarter from another image of the batch."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    mixed = x.clone()
    for k, (rows, columns) in enumerate(((slice(height), slice(width, None)), (slice(height, None), slice(width)))):
        mixed[:, :, rows, columns] = x.roll(k + 1, 0)[:, :, rows, columns]
    return mixed


def clouds(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Smooth random colour: noise of all scales, most of it coarse."""
    total, size = torch.zeros_like(x), 1
    while size <= x.shape[-1] // 2:
        coarse = torch.empty(*x.shape[:2], size, size, device=x.device).normal_(generator=generator)
        weight = (0.9 if size <= x.shape[-1] // 16 else 0.35) * _uniform((len(x), 1, 1, 1), generator)
        total += weight * F.interpolate(coarse, x.shape[-2:], mode="bicubic")
        size *= 2
    return total.clamp(-1, 1)


def one_colour(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image another."""
    return (2 * _uniform((*x.shape[:2], 1, 1), generator) - 1).expand_as(x)


def occluded(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A rectangle of a fifth to half of the size, of one colour or of clouds."""
    height, width = x.shape[-2:]
    size, top, left, kind = _uniform((4, len(x), 1, 1), generator)
    size = 0.2 + 0.3 * size
    rows = torch.arange(height, device=x.device)[:, None] / height - top * (1 - size)
    columns = torch.arange(width, device=x.device) / width - left * (1 - size)
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    filling = torch.where(kind[:, None] < 0.5, one_colour(x, generator), clouds(x, generator))
    return torch.where(inside[:, None], filling, x)


CORRUPTIONS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    each.__name__: each for each in (blurred, noisy, shuffled, quadrants, clouds, one_colour, occluded)
}


def corrupt(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (B, C, H, W) in [-1, 1], each broken by a kind of its own."""
    kinds = torch.stack([broken(x, generator) for broken in CORRUPTIONS.values()])
    which = torch.randint(len(kinds), (len(x),), generator=generator, device=x.device)
    return kinds[which, torch.arange(len(x), device=x.device)]


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)
