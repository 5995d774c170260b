from types import SimpleNamespace

import pytest
import torch

from jem_hf.distances import frechet_distance
from jem_hf.feature_network import FeatureNetwork, load_feature_network


def striped_images(num_images, seed):
    """16x16 noise; attribute 0: a bright stripe at the bottom; attribute 1: no, a high or a wide block."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (num_images, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 6, (num_images,), generator=generator)
    labels = torch.stack([labels % 2, labels // 2], 1)
    images[labels[:, 0] == 1, :, 13:] = 220
    images[labels[:, 1] == 1, :, 3:12, 6:10] = 250
    images[labels[:, 1] == 2, :, 6:10, 3:12] = 250
    return SimpleNamespace(images=images, labels=labels)


@pytest.fixture(scope="module")
def train():
    split = striped_images(384, seed=0)
    split.labels[::5, 0] = -1
    return split


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def network(train, cache):
    return load_feature_network(train, [2, 3], num_epochs=4, cache_dir=cache)


def test_features_are_standardised_over_the_training_images(network, train):
    features = network.extract(train.images)
    assert features.shape == (384, 128) and features.dtype == torch.float64
    torch.testing.assert_close(features.mean(0), torch.zeros(128).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(128).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(network.extract(train.images / 127.5 - 1, batch_size=7), features)


def test_real_images_are_nearer_than_changed_ones(network, train):
    test = striped_images(200, seed=1)
    reference = network.extract(train.images)
    real = frechet_distance(network.extract(test.images), reference)
    assert frechet_distance(network.extract(test.images.flip(-2)), reference) > 2 * real
    one_kind = test.images[test.labels[:, 0] == 1]
    assert frechet_distance(network.extract(one_kind), reference) > 2 * real


def test_the_cache_returns_the_same_network_without_training(network, train, cache):
    steps = []
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    again = load_feature_network(
        train, [2, 3], num_epochs=4, cache_dir=cache, progress=lambda *step: steps.append(step)
    )
    assert not steps and (torch.rand(4) == expected).all()
    assert (again.extract(train.images[:9]) == network.extract(train.images[:9])).all()
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert [path.suffix for path in (cache / "feature_networks").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("size", [8, 32, 64])
def test_other_image_sizes_and_grey_images(size):
    network = FeatureNetwork(1, size, [2, 2, 5])
    assert network.extract(torch.zeros(3, 1, size, size, dtype=torch.uint8)).shape == (3, 128)
