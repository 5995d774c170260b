import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from jem_hf import AttributeTensors, JemConfig, JemModel

torch.set_num_threads(1)


@pytest.fixture
def config():
    """Two binary attributes and one of three values, at 8x8 pixels."""
    return JemConfig(
        attributes=["Smiling", "Hair", "Hat"],
        attribute_values={"Hair": ["black", "blond", "red"]},
        backbone_kwargs={"width": 4, "hidden_size": 8},
        image_size=8,
        num_inference_steps=4,
    )


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return JemModel(config).eval()


@pytest.fixture
def tensors(config):
    """48 random images with random labels, some missing."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.stack([torch.randint(-1, v, (48,), generator=generator) for v in config.num_values], dim=1)
    return AttributeTensors(images, labels, config.attributes)
