"""Samples that wait for their chains to go on (persistent contrastive divergence)."""

import math

import torch

POLICIES = ("fifo", "reservoir")


def dequantise(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """uint8 images (B, C, H, W) to pixels in [-1, 1), `2 (i + u) / 256 - 1` with u uniform in [0, 1)."""
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return (images + noise) / 128 - 1


def quantise(x: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] to uint8, the inverse of `dequantise`."""
    return ((x + 1) * 128).floor().clamp(0, 255).to(torch.uint8)


def map_images(shape: tuple[int, ...], path: str) -> torch.Tensor:
    """uint8 images (N, C, H, W) that are the bytes of a file, which is made where there is none."""
    return torch.from_file(path, shared=True, size=math.prod(shape), dtype=torch.uint8).view(shape)


def noise_images(
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
    path: str | None = None,
) -> torch.Tensor:
    """Random uint8 images (N, C, H, W), in memory, or on the CPU as a memory map of the file `path`."""
    device = torch.device(device) if generator is None else generator.device
    if path is None:
        return torch.randint(256, shape, generator=generator, device=device, dtype=torch.uint8)
    images = map_images(shape, path)
    for part in images.split(1024):  # the draws of all pixels at once would need the memory that the map saves
        part.copy_(torch.randint(256, part.shape, generator=generator, device=device, dtype=torch.uint8))
    return images


class ReplayBuffer:
    """
    Images, of fixed number, at first noise; labels are not held, for the first Gibbs draw of a chain replaces them.

    Images are held in 8 bits; samples of them are dequantised, as the data is: uniform noise of width 1/128. They may
    lie on another device than the chains, or on disk (see [`noise_images`]).

    Args:
        images (`torch.Tensor` of shape (N, C, H, W), uint8): What it holds at first; it is written to.
        policy (`str`, *optional*, defaults to `"fifo"`): `"fifo"` replaces the oldest, `"reservoir"` keeps a uniform
            sample of all that ever came.
    """

    def __init__(self, images: torch.Tensor, policy: str = "fifo"):
        if policy not in POLICIES:
            raise ValueError(f"unknown buffer policy {policy!r}; choose fifo or reservoir")
        self.images, self.policy = images, policy
        self.num_seen = 0
        self.overwritten = None  # where this is a list, `push` appends what it replaces: see `undo`

    def __len__(self):
        return len(self.images)

    def sample(self, num: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Random images (num, C, H, W) in [-1, 1], on the device of the generator."""
        device = self.images.device if generator is None else generator.device
        rows = torch.randint(len(self), (num,), generator=generator, device=device).to(self.images.device)
        return dequantise(self.images[rows].to(device), generator)

    def push(self, x: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """Store images (B, C, H, W) in [-1, 1]."""
        order = torch.arange(self.num_seen, self.num_seen + len(x), device=self.images.device)
        rows = order % len(self)
        if self.policy == "reservoir" and self.num_seen + len(x) > len(self):  # algorithm R (Vitter 1985)
            device = order.device if generator is None else generator.device
            chance = torch.rand(len(x), generator=generator, device=device, dtype=torch.float64).to(order.device)
            rows = torch.where(order < len(self), order, (chance * (order + 1)).long())
        last = _last_of_each(rows)  # two writes to one row at once have no order on a GPU
        last = last[rows[last] < len(self)]
        rows, images = rows[last], quantise(x).to(rows.device)[last]
        if self.overwritten is not None:
            self.overwritten.append((rows, self.images[rows], self.num_seen))
        self.images[rows] = images
        self.num_seen += len(x)

    def undo(self, overwritten: list[tuple]) -> None:
        """Put back what `push` has replaced since `overwritten` was set."""
        for rows, images, self.num_seen in reversed(overwritten):
            self.images[rows] = images

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"images": self.images, "num_seen": torch.tensor(self.num_seen)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.images.copy_(state["images"])
        self.num_seen = int(state["num_seen"])


def _last_of_each(rows: torch.Tensor) -> torch.Tensor:
    """Positions (M,) of the last occurrence of each of the numbers `rows` (B,), none of them negative."""
    order = rows.argsort(stable=True)
    return order[rows[order].diff(append=rows.new_tensor([-1])) != 0]
