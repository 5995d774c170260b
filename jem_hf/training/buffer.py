"""Samples that wait for their chains to go on (persistent contrastive divergence)."""

import math

import torch


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
    for part in images.split(1024):
        part.copy_(torch.randint(256, part.shape, generator=generator, device=device, dtype=torch.uint8))
    return images


class ReplayBuffer:
    """
    Pairs of images and labels, of fixed number, at first noise.

    Images are held in 8 bits; what is drawn is dequantised, as the data is: uniform noise of width 1/128.

    They may lie on another device than the chains, or on disk (see [`noise_images`]); pairs are drawn on the device of
    the generator.

    Args:
        images (`torch.Tensor` of shape (N, C, H, W), uint8): What it holds at first; it is written to.
        labels (`torch.Tensor` of shape (N, K)): Their labels.
        policy (`str`): `"fifo"` replaces the oldest, `"reservoir"` keeps a uniform draw of all that ever came.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, policy: str = "fifo"):
        if policy not in ("fifo", "reservoir"):
            raise ValueError(f"unknown buffer policy {policy!r}; choose fifo or reservoir")
        self.images, self.labels, self.policy = images, labels, policy
        self.num_seen = 0
        self.overwritten = None  # a list here is told of all that `push` replaces

    def __len__(self):
        return len(self.images)

    def sample(self, num: int, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pairs: images (num, C, H, W) in [-1, 1] and labels (num, K)."""
        device = self.images.device if generator is None else generator.device
        rows = torch.randint(len(self), (num,), generator=generator, device=device).to(self.images.device)
        return dequantise(self.images[rows].to(device), generator), self.labels[rows].to(device)

    def push(self, x: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None):
        """Store images (B, C, H, W) in [-1, 1] and labels (B, K)."""
        order = torch.arange(self.num_seen, self.num_seen + len(x), device=self.images.device)
        images, labels = quantise(x).to(order.device), labels.to(order.device)
        if self.policy == "fifo" or self.num_seen + len(x) <= len(self):
            rows = order % len(self)
        else:  # algorithm R (Vitter 1985)
            device = order.device if generator is None else generator.device
            chance = torch.rand(len(x), generator=generator, device=device, dtype=torch.float64).to(order.device)
            rows = (chance * (order + 1)).long()
            kept = rows < len(self)
            rows, images, labels = rows[kept], images[kept], labels[kept]
        if self.overwritten is not None:
            self.overwritten.append((rows, self.images[rows], self.labels[rows], self.num_seen))
        self.images[rows], self.labels[rows] = images, labels
        self.num_seen += len(x)

    def undo(self, overwritten: list[tuple]) -> None:
        """Put back what a list at `overwritten` was told of."""
        for rows, images, labels, self.num_seen in reversed(overwritten):
            self.images[rows], self.labels[rows] = images, labels

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"images": self.images, "labels": self.labels, "num_seen": torch.tensor(self.num_seen)}

    def load_state_dict(self, state: dict[str, torch.Tensor]):
        self.images.copy_(state["images"])
        self.labels.copy_(state["labels"])
        self.num_seen = int(state["num_seen"])
