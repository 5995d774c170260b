"""Random changes of images that leave their labels alone."""

import torch
from torchvision.transforms.v2.functional import gaussian_blur


def dequantise(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """uint8 images (B, C, H, W) to pixels in [-1, 1), `2 (i + u) / 256 - 1` with u uniform in [0, 1)."""
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return (images + noise) / 128 - 1


def quantise(x: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] to uint8, the inverse of `dequantise`."""
    return ((x + 1) * 128).floor().clamp(0, 255).to(torch.uint8)


def augment(x: torch.Tensor, flip: bool, blur: bool, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    Images (B, C, H, W), half of them mirrored and half blurred (5x5 Gaussian, sigma .1 to 2 pixels, one a batch).

    Restarting chains from transformed samples helps them mix (Du et al. 2021, section 3.3).
    """
    half = torch.rand(2, len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    if flip:
        x = torch.where(half[0], x.flip(-1), x)
    if blur:
        sigma = 0.1 + 1.9 * torch.rand(1, generator=generator, device=x.device).item()
        x = torch.where(half[1], gaussian_blur(x, [5, 5], [sigma, sigma]), x)
    return x


def random_shift(x: torch.Tensor, max_shift: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Each image of (B, C, H, W) moved by up to `max_shift` pixels either way, its edges repeated."""
    (num, _, height, width), device = x.shape, x.device
    down, right = torch.randint(-max_shift, max_shift + 1, (2, num, 1), generator=generator, device=device)
    rows = (torch.arange(height, device=device) + down).clamp(0, height - 1)[:, :, None]
    columns = (torch.arange(width, device=device) + right).clamp(0, width - 1)[:, None, :]
    return x[torch.arange(num, device=device)[:, None, None], :, rows, columns].movedim(-1, 1)
