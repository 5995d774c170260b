"""How the networks that judge images learn the attributes of a real training split, once for the same data."""

import os
from collections.abc import Callable, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.image_processing_jem import to_pixels
from ..training.augmentation import augment, random_shift
from ..training.precision import has_native_bfloat16
from .cache import cache_path, save_atomically

BATCH_SIZE = 64
SHIFT = 2


class AttributeReadout(nn.Linear):
    """
    Features (B, D) to logits (B, K, V), -inf at the values that an attribute lacks.

    Args:
        num_features: D.
        num_values: number of values V_k of each attribute k; V is their maximum.
    """

    def __init__(self, num_features: int, num_values: Sequence[int]):
        super().__init__(num_features, len(num_values) * max(num_values))
        lacking = torch.arange(max(num_values)) >= torch.tensor(num_values)[:, None]
        self.register_buffer("lacking", lacking, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        logits = super().forward(features).float()
        return logits.view(-1, *self.lacking.shape).masked_fill(self.lacking, -torch.inf)


def load_or_learn(
    make: Callable[[], nn.Module],
    train,
    kind: str,
    settings: tuple,
    *,
    seed: int,
    num_epochs: int,
    max_learning_rate: float,
    weight_decay: float,
    finish: Callable[[nn.Module], None] = lambda network: None,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """
    The network from the cache where it is there, else trained and cached; frozen, on the GPU where there is one.

    Args:
        make: gives the untrained network, whose `attribute_logits` takes images (B, C, H, W) in [-1, 1] to (B, K, V).
        train: `AttributeTensors` of the split: images uint8 (N, C, H, W), labels (N, K) with -1 for missing.
        kind, settings, cache_dir: see `cache_path`; `settings` tell all that decides the weights but the data.
        finish: called with the trained network before it is cached.
        progress: called after every training step with the steps done and the steps in all; never on a cache hit.
    """
    path = cache_path(kind, settings, (train.images, train.labels), cache_dir)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make().to(memory_format=torch.channels_last)
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        if not path.exists():
            _learn(network, train.images, train.labels, num_epochs, max_learning_rate, weight_decay, progress)
            finish(network)
            save_atomically(network.state_dict(), path)
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def _learn(network, images, labels, num_epochs, max_learning_rate, weight_decay, progress) -> None:
    """AdamW with a one-cycle rate on the mean cross-entropy over the labels that are present."""
    device = next(network.parameters()).device
    total = num_epochs * -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_learning_rate, total)
    network.train()
    done = 0
    for _ in range(num_epochs):
        for rows in torch.randperm(len(images)).split(BATCH_SIZE):
            batch = to_pixels(random_shift(augment(images[rows].to(device), flip=True, blur=False), SHIFT))
            with torch.autocast(device.type, torch.bfloat16, enabled=has_native_bfloat16(device)):
                logits = network.attribute_logits(batch)
            targets = labels[rows].to(device).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-1, reduction="sum")
            optimizer.zero_grad()
            (loss / (targets >= 0).sum().clamp(min=1)).backward()
            optimizer.step()
            schedule.step()
            done += 1
            if progress is not None:
                progress(done, total)
