"""Random changes of images that leave their labels alone."""

import torch
import torch.nn.functional as F
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


def random_crop(
    x: torch.Tensor, zoom: float, rotation: float = 0.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Each image of (B, C, H, W) as another might have cut it, mirrored beyond its edges: smaller by up to `zoom` times
    or a little larger, turned by up to `rotation` degrees, moved by up to a tenth of its size. Half of them stay.
    """
    stays, scale, angle, *way = torch.rand(5, len(x), generator=generator, device=x.device)
    scale = zoom ** (1.1 * scale - 0.1)
    shift = [(2 * each - 1) * 0.2 for each in way]
    moved = _moved(x, scale, (2 * angle - 1) * rotation, shift, "reflection")
    return torch.where(stays[:, None, None, None] < 0.5, x, moved)


def random_placement(
    x: torch.Tensor, zoom: float, rotation: float = 0.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Each image of (B, C, H, W) smaller by up to `zoom` times, moved as far as it stays inside, and turned by up to
    `rotation` degrees; its edges, the plain ground of an object, are repeated.
    """
    scale, angle, *way = torch.rand(4, len(x), generator=generator, device=x.device)
    scale = zoom**scale
    shift = [(2 * each - 1) * (scale - 1) for each in way]
    return _moved(x, scale, (2 * angle - 1) * rotation, shift, "border")


def _moved(x, scale, degrees, shift, padding_mode):
    """Images (B, C, H, W) `scale` (B,) times smaller, turned, and moved by a share (B,) of half of their size."""
    angle = torch.deg2rad(degrees)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    turn = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode=padding_mode, align_corners=False)
