"""The frozen network in whose features distances between sets of images are measured.

It is neither the generator nor the oracle: separable convolutions with batch normalisation and another seed. It learns
the attributes of the real training split, and is cached, so that the same data is learnt once. Distances in its
features compare models of one data set; they are no FID, whose features are those of one Inception network for all.
"""

import os
from collections.abc import Callable, Sequence

import torch
from timm.layers import ConvNormAct, SeparableConvNormAct
from torch import Tensor, nn

from ..models.image_processing_jem import to_pixels
from .attribute_network import BATCH_SIZE, SHIFT, AttributeReadout, load_or_learn

STEM_CHANNELS = 32
STAGE_CHANNELS = (64, 96, 128)
MAX_LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.02
# Part of the cache key: raise the revision when the network or its training changes in any other way.
ARCHITECTURE = f"separable r1 {(STEM_CHANNELS, STAGE_CHANNELS, BATCH_SIZE, MAX_LEARNING_RATE, WEIGHT_DECAY, SHIFT)}"


class FeatureNetwork(nn.Module):
    """A small network of separable convolutions whose pooled features predict every attribute of an image.

    Args:
        num_channels: channels C of the images.
        image_size: height and width of the images in pixels; the stem brings larger ones down to about 32.
        num_values: number of values V_k of each attribute k; V below is their maximum.
    """

    def __init__(self, num_channels: int, image_size: int, num_values: Sequence[int]):
        super().__init__()
        stride = max(1, image_size // 32)
        layers = [ConvNormAct(num_channels, STEM_CHANNELS, 2 * stride + 1, stride, act_layer=nn.SiLU)]
        width = STEM_CHANNELS
        for channels in STAGE_CHANNELS:
            layers.append(SeparableConvNormAct(width, channels, 5, 2, act_layer=nn.SiLU))
            layers.append(SeparableConvNormAct(channels, channels, 3, act_layer=nn.SiLU))
            width = channels
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = AttributeReadout(width, num_values)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images in [-1, 1] of shape (B, C, H, W), standardised over the training images."""
        features = self.layers(images.contiguous(memory_format=torch.channels_last)).float()
        return (features - self.mean) / self.std

    def attribute_logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, V) of images in [-1, 1] of shape (B, C, H, W), for training."""
        return self.head(self(images))

    def standardise(self, images: Tensor) -> None:
        """Bring the features over these images to mean 0 and standard deviation 1."""
        features = self.extract(images)
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp(min=1e-6))

    @torch.inference_mode()
    def extract(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Features (N, D), float64 on the CPU, of images (N, C, H, W), uint8 or floats in [-1, 1], in batches."""
        self.eval()
        device = self.mean.device
        return torch.cat([self(to_pixels(batch.to(device))).cpu() for batch in images.split(batch_size)]).double()


def load_feature_network(
    train,
    num_values: Sequence[int],
    *,
    seed: int = 2718,
    num_epochs: int = 4,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureNetwork:
    """The feature network for a training split, from the cache where it is there, else trained and cached.

    Args:
        train: `AttributeTensors` of the split: images uint8 (N, C, H, W), labels (N, K) with -1 for missing.
        num_values: number of values of each attribute.
        cache_dir: root of the cache; by default $JEM_HF_CACHE, else ~/.cache/jem_hf.
        progress: called after every training step with the steps done and the steps in all; never on a cache hit.
    """
    return load_or_learn(
        lambda: FeatureNetwork(train.images.shape[1], train.images.shape[-1], num_values),
        train,
        "feature_networks",
        (ARCHITECTURE, tuple(num_values), seed, num_epochs),
        seed=seed,
        num_epochs=num_epochs,
        max_learning_rate=MAX_LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        finish=lambda network: network.standardise(train.images),
        cache_dir=cache_dir,
        progress=progress,
    )
