"""Random changes of images that leave their labels alone."""

import torch
from torchvision.transforms.v2.functional import gaussian_blur


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
    height, width = x.shape[-2:]
    device = x.device
    down, right = torch.randint(-max_shift, max_shift + 1, (2, len(x), 1), generator=generator, device=device)
    rows = (torch.arange(height, device=device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + right).clamp(0, width - 1)
    return x[torch.arange(len(x), device=device)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(
        -1, 1
    )
