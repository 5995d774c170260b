import gc
import math
import os
import time

gc.disable()  # collections find nothing while modules are imported, and are a third of the time that this takes
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, too: tests run beside each other

import pytest
import torch

from jem_hf import AttributeTensors, JemConfig, JemModel

torch.set_num_threads(1)
START = time.monotonic()


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, default=math.inf, help="after these begin no test")


def pytest_collection_modifyitems(items):
    """Slow ones last, so that they are those that --minutes leave out."""
    items.sort(key=lambda item: "slow" in item.keywords)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    minutes = item.config.getoption("minutes")
    if time.monotonic() - START >= 60 * minutes:
        pytest.skip(f"{minutes:g} minutes have passed")


def pytest_collection_finish():
    """What has been imported stays, so that no collection looks at it again: every training begins with one."""
    gc.freeze()
    gc.enable()


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


def striped_images(num_images, seed):
    """16x16 noise; "stripe": a bright one at the bottom; "block": none, a high or a wide one."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (num_images, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 6, (num_images,), generator=generator)
    labels = torch.stack([labels % 2, labels // 2], 1)
    images[labels[:, 0] == 1, :, 13:] = 220
    images[labels[:, 1] == 1, :, 3:12, 6:10] = 250
    images[labels[:, 1] == 2, :, 6:10, 3:12] = 250
    return AttributeTensors(images, labels, ["stripe", "block"])


@pytest.fixture(scope="session")
def striped_train():
    """Striped images to train on, a fifth of each label missing."""
    split = striped_images(600, seed=0)
    split.labels[::5, 0] = -1
    split.labels[1::5, 1] = -1
    return split


@pytest.fixture(scope="session")
def striped_test():
    return striped_images(300, seed=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the networks that a file of tests trains are kept."""
    return tmp_path_factory.mktemp("cache")
