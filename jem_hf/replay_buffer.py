"""Samples that wait for their chains to go on (persistent contrastive divergence)."""

import torch


def dequantise(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """uint8 images (B, C, H, W) to pixels in [-1, 1), `2 (i + u) / 256 - 1` with u uniform in [0, 1)."""
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return (images + noise) / 128 - 1


def quantise(x: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] to uint8, the inverse of `dequantise`."""
    return ((x + 1) * 128).floor().clamp(0, 255).to(torch.uint8)


class ReplayBuffer:
    """
    Pairs of images and labels, of fixed number, at first noise.

    Images are held in 8 bits; what is drawn is dequantised, as the data is: uniform noise of width 1/128.

    Args:
        images (`torch.Tensor` of shape (N, C, H, W), uint8): What it holds at first.
        labels (`torch.Tensor` of shape (N, K)): Their labels.
        policy (`str`): `"fifo"` replaces the oldest, `"reservoir"` keeps a uniform draw of all that ever came.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, policy: str = "fifo"):
        if policy not in ("fifo", "reservoir"):
            raise ValueError(f"unknown buffer policy {policy!r}; choose fifo or reservoir")
        self.images, self.labels, self.policy = images, labels, policy
        self.num_seen = 0

    def __len__(self):
        return len(self.images)

    def sample(self, num: int, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pairs: images (num, C, H, W) in [-1, 1] and labels (num, K)."""
        rows = torch.randint(len(self), (num,), generator=generator, device=self.images.device)
        return dequantise(self.images[rows], generator), self.labels[rows]

    def push(self, x: torch.Tensor, labels: torch.Tensor, generator: torch.Generator | None = None):
        """Store images (B, C, H, W) in [-1, 1] and labels (B, K)."""
        order = torch.arange(self.num_seen, self.num_seen + len(x), device=self.images.device)
        if self.policy == "fifo" or self.num_seen + len(x) <= len(self):
            rows = order % len(self)
            kept = torch.ones_like(rows, dtype=torch.bool)
        else:  # algorithm R (Vitter 1985)
            chance = torch.rand(len(x), generator=generator, device=order.device, dtype=torch.float64)
            rows = (chance * (order + 1)).long()
            kept = rows < len(self)
        self.images[rows[kept]] = quantise(x[kept])
        self.labels[rows[kept]] = labels[kept]
        self.num_seen += len(x)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"images": self.images, "labels": self.labels, "num_seen": torch.tensor(self.num_seen)}

    def load_state_dict(self, state: dict[str, torch.Tensor]):
        self.images = state["images"].to(self.images.device)
        self.labels = state["labels"].to(self.labels.device)
        self.num_seen = int(state["num_seen"])
