"""The networks that judge drawn images: trained on the attributes of the real training split, and frozen.

They share nothing with the model that they judge: other architectures (with batch normalisation, which a JEM must not
have), other seeds, another objective. The oracle says which attributes an image shows. In the features of the other
network distances between sets of images are measured; these compare models of one data set and are no FID, whose
features are those of one Inception network for all. Weights are cached, so that the same data is learnt once.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from ..data.tensors import AttributeTensors
from ..models.image_processing_jem import to_pixels
from ..training.augmentation import augment, random_shift
from ..training.devices import has_native_bfloat16

logger = logging.get_logger(__name__)

IMAGE_SIZE = 64  # of what the networks see: their fourth map of features then has 4x4 places
BATCH_SIZE, SHIFT = 64, 2


class Judge(nn.Module):
    """
    A network of timm that predicts every attribute of an image from its map of 4x4 places.

    The place of a feature tells attributes apart (a hat from a collar), hence no pooling down to one place.

    Args:
        num_channels (`int`), num_values (`Sequence[int]`): Of the images, and of each attribute.

    Images (N, C, H, W) are uint8 or floats in [-1, 1]; what is said of them is on the CPU.
    """

    folder: ClassVar[str]
    settings: ClassVar[dict]  # of timm.create_model; part of the cache key, as are all that follow
    training: ClassVar[dict]
    num_features: ClassVar[int | None] = None
    dropout: ClassVar[float] = 0.0

    def __init__(self, num_channels: int, num_values: Sequence[int]):
        super().__init__()
        self.network = timm.create_model(**self.settings, in_chans=num_channels, features_only=True, out_indices=(3,))
        width = 16 * self.network.feature_info.channels()[0]
        narrow = nn.Linear(width, self.num_features) if self.num_features else nn.Identity()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(self.dropout), narrow)
        self.head = nn.Linear(self.num_features or width, len(num_values) * max(num_values))
        lacking = torch.arange(max(num_values)) >= torch.tensor(num_values)[:, None]
        self.register_buffer("lacking", lacking, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """(B, D), of images (B, C, H, W) in [-1, 1]."""
        x = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
        return self.pool(self.network(x.contiguous(memory_format=torch.channels_last))[0])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, V) of images (B, C, H, W) in [-1, 1], -inf at the values that an attribute lacks."""
        logits = self.head(self.features(images)).float()
        return logits.view(-1, *self.lacking.shape).masked_fill(self.lacking, -torch.inf)

    def finish(self, images: Tensor) -> None:
        """What is left to do with the training images after training: nothing."""

    @torch.inference_mode()
    def _in_batches(self, function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
        self.eval()
        device = self.lacking.device
        return torch.cat([function(to_pixels(batch.to(device))).cpu() for batch in images.split(batch_size)])


class Oracle(Judge):
    """A small residual network that sees every attribute of an image."""

    folder = "oracles"
    settings = dict(
        model_name="test_resnet", block=BasicBlock, stem_width=8, channels=(48, 96, 192, 192), zero_init_last=False
    )
    training = dict(max_learning_rate=3e-3, weight_decay=0.05)
    dropout = 0.3

    def predict_proba(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Probability (N, K, V) of every value of every attribute, zero where an attribute lacks the value."""
        return self._in_batches(self, images, batch_size).softmax(-1)

    def predict(self, images: Tensor) -> Tensor:
        """The most probable value (N, K) of every attribute."""
        return self.predict_proba(images).argmax(-1)


class FeatureNetwork(Judge):
    """A small EfficientNet in whose features distances are measured, neither generator nor oracle."""

    folder = "feature_networks"
    settings = dict(model_name="test_efficientnet")
    training = dict(max_learning_rate=5e-3, weight_decay=0.02)
    num_features = 128

    def __init__(self, num_channels: int, num_values: Sequence[int]):
        super().__init__(num_channels, num_values)
        self.register_buffer("mean", torch.zeros(self.num_features))
        self.register_buffer("std", torch.ones(self.num_features))

    def extract(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Features (N, 128) in float64, with mean 0 and standard deviation 1 over the training images."""
        features = self._in_batches(self.features, images, batch_size)
        return ((features - self.mean.cpu()) / self.std.cpu()).double()

    def finish(self, images: Tensor) -> None:
        features = self.extract(images)
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0, correction=0).clamp(min=1e-6))


def no_progress(*_: Any) -> None:
    """The callback of those who want none."""


def load_judge(
    judge: type[Judge],
    train: AttributeTensors,
    num_values: Sequence[int],
    num_epochs: int,
    *,
    seed: int,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] = no_progress,
) -> Judge:
    """
    A judge, from the cache where it is there, else trained and cached; frozen, on the GPU where there is one.

    Args:
        judge (`type`): `Oracle` or `FeatureNetwork`, given by `load_oracle` and `load_feature_network`.
        train (`AttributeTensors`): The training split.
        num_values (`Sequence[int]`): Number of values of each attribute.
        num_epochs (`int`): Passes over the data.
        cache_dir (`str`, *optional*): Root of the cache; by default $JEM_HF_CACHE, else ~/.cache/jem_hf.
        progress: Called after every training step with the steps done and in all; never on a cache hit.

    Raises:
        ValueError: `num_values` does not fit the labels.
    """
    if train.labels.shape[1] != len(num_values):
        raise ValueError(f"{len(num_values)} numbers of values for labels of {train.labels.shape[1]} attributes")
    if (train.labels.amax(0) >= torch.tensor(num_values)).any():
        raise ValueError("a label lies outside the values of its attribute")
    recipe = (judge.settings, judge.training, judge.num_features, judge.dropout, IMAGE_SIZE, BATCH_SIZE, SHIFT)
    key = (timm.__version__, recipe, tuple(num_values), seed, num_epochs)
    path = cache_path(judge.folder, key, train, cache_dir)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = judge(train.images.shape[1], num_values).to(memory_format=torch.channels_last)
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        if os.path.exists(path):
            network.load_state_dict(load_file(path))
        else:
            _learn(network, train.images, train.labels, num_epochs, progress, **judge.training)
            network.finish(train.images)
            save_atomically(network.state_dict(), path)
    return network.eval().requires_grad_(False)


load_oracle = partial(load_judge, Oracle, num_epochs=6, seed=1234)
load_feature_network = partial(load_judge, FeatureNetwork, num_epochs=4, seed=2718)


def _learn(network, images, labels, num_epochs, progress, max_learning_rate, weight_decay) -> None:
    """AdamW with a one-cycle rate on the mean cross-entropy over the labels that are present."""
    device = network.lacking.device
    total = num_epochs * -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_learning_rate, total)
    network.train()
    done = 0
    for _ in range(num_epochs):
        for rows in torch.randperm(len(images)).split(BATCH_SIZE):
            batch = to_pixels(random_shift(augment(images[rows].to(device), flip=True, blur=False), SHIFT))
            with torch.autocast(device.type, torch.bfloat16, enabled=has_native_bfloat16(device)):
                logits = network(batch)
            targets = labels[rows].to(device).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-1, reduction="sum")
            optimizer.zero_grad()
            (loss / (targets >= 0).sum().clamp(min=1)).backward()
            optimizer.step()
            schedule.step()
            done += 1
            progress(done, total)


def cache_path(kind: str, settings: Any, train: AttributeTensors, cache_dir: str | os.PathLike | None = None) -> Path:
    """
    The file of one trained network: its name is a hash of all that decides the weights.

    Args:
        kind (`str`): Folder below `cache_dir`, such as "oracles"; by default in $JEM_HF_CACHE, else ~/.cache/jem_hf.
        settings: Anything whose `repr` names architecture, seed and training.
        train (`AttributeTensors`): The training data.
    """
    key = hashlib.sha256(repr(settings).encode())
    for tensor in (train.images, train.labels):
        key.update(repr(tuple(tensor.shape)).encode())
        key.update(tensor.cpu().contiguous().numpy())
    root = os.path.expanduser(cache_dir or os.environ.get("JEM_HF_CACHE") or "~/.cache/jem_hf")
    return Path(root) / kind / f"{key.hexdigest()}.safetensors"


def save_atomically(tensors: dict[str, Tensor], path: Path) -> None:
    """Write safetensors so that `path` is there whole or not at all. Where that fails, warn: work goes on without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        logger.warning(
            f"cannot keep a trained network in the cache {str(path.parent)!r} ({error.strerror}), so the next "
            "evaluation trains it again: name a folder that can be written, by --cache_dir or JEM_HF_CACHE"
        )
