"""The independent judge of generated images: a residual classifier trained on the real training split.

It shares nothing with the model that it judges: another architecture (with batch normalisation, which a JEM must not
have), another seed, another objective. Its weights are cached, so that the same data is learnt once.
"""

import os
from collections.abc import Callable, Sequence

import torch
from timm.models.resnet import BasicBlock, downsample_avg
from torch import Tensor, nn

from ..models.image_processing_jem import to_pixels
from .attribute_network import BATCH_SIZE, SHIFT, AttributeReadout, load_or_learn

STEM_CHANNELS = 16
STAGE_CHANNELS = (48, 96, 192)
DROPOUT = 0.3
MAX_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
# Part of the cache key: raise the revision when the network or its training changes in any other way.
ARCHITECTURE = (
    f"resnet r2 {(STEM_CHANNELS, STAGE_CHANNELS, DROPOUT, BATCH_SIZE, MAX_LEARNING_RATE, WEIGHT_DECAY, SHIFT)}"
)


class Oracle(nn.Module):
    """A small residual network with batch normalisation that predicts every attribute of an image.

    Args:
        num_channels: channels C of the images.
        image_size: height and width of the images in pixels; the stem brings larger ones down to about 32.
        num_values: number of values V_k of each attribute k; V below is their maximum.
    """

    def __init__(self, num_channels: int, image_size: int, num_values: Sequence[int]):
        super().__init__()
        stride = max(1, image_size // 32)
        layers = [
            nn.Conv2d(num_channels, STEM_CHANNELS, 2 * stride + 1, stride, padding=stride, bias=False),
            nn.BatchNorm2d(STEM_CHANNELS),
            nn.ReLU(),
        ]
        width = STEM_CHANNELS
        for channels in STAGE_CHANNELS:
            layers.append(BasicBlock(width, channels, 2, downsample_avg(width, channels, 1, stride=2)))
            width = channels
        # The place of a feature tells attributes apart (a hat from a collar), hence no pooling down to one place.
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(DROPOUT))
        self.head = AttributeReadout(16 * width, num_values)

    def attribute_logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, V) of images in [-1, 1] of shape (B, C, H, W), -inf at the values that an attribute lacks."""
        return self.head(self.features(images.contiguous(memory_format=torch.channels_last)))

    @torch.inference_mode()
    def predict_proba(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Probability of every value of every attribute, in batches and in evaluation mode.

        Args:
            images: (N, C, H, W), uint8 or floats in [-1, 1].

        Returns:
            (N, K, V) on the CPU, zeros at the values that an attribute lacks.
        """
        self.eval()
        device = self.head.weight.device
        batches = [self.attribute_logits(to_pixels(batch.to(device))) for batch in images.split(batch_size)]
        return torch.cat(batches).softmax(-1).cpu()

    def predict(self, images: Tensor) -> Tensor:
        """The most probable value of every attribute: (N, K) integers for images as in `predict_proba`."""
        return self.predict_proba(images).argmax(-1)


def load_oracle(
    train,
    num_values: Sequence[int],
    *,
    seed: int = 1234,
    num_epochs: int = 6,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Oracle:
    """The oracle for a training split, from the cache where it is there, else trained and cached.

    Args:
        train: `AttributeTensors` of the split: images uint8 (N, C, H, W), labels (N, K) with -1 for missing.
        num_values: number of values of each attribute.
        cache_dir: root of the cache; by default $JEM_HF_CACHE, else ~/.cache/jem_hf. Weights go to `oracles` in it.
        progress: called after every training step with the steps done and the steps in all; never on a cache hit.

    Raises:
        ValueError: `num_values` does not fit the labels.
    """
    if train.labels.shape[1] != len(num_values):
        raise ValueError(f"{len(num_values)} numbers of values for labels of {train.labels.shape[1]} attributes")
    if (train.labels.amax(0) >= torch.tensor(num_values)).any():
        raise ValueError("a label lies outside the values of its attribute")
    return load_or_learn(
        lambda: Oracle(train.images.shape[1], train.images.shape[-1], num_values),
        train,
        "oracles",
        (ARCHITECTURE, tuple(num_values), seed, num_epochs),
        seed=seed,
        num_epochs=num_epochs,
        max_learning_rate=MAX_LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        cache_dir=cache_dir,
        progress=progress,
    )
