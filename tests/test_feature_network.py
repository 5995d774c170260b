import pytest
import torch

from jem_hf.evaluation.feature_network import FeatureNetwork, load_feature_network
from jem_hf.metrics.distances import frechet_distance


@pytest.fixture(scope="module")
def network(striped_train, cache):
    return load_feature_network(striped_train, [2, 3], num_epochs=4, cache_dir=cache)


def test_features_are_standardised_over_the_training_images(network, striped_train):
    features = network.extract(striped_train.images)
    assert features.shape == (600, 128) and features.dtype == torch.float64
    torch.testing.assert_close(features.mean(0), torch.zeros(128).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(128).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(network.extract(striped_train.images / 127.5 - 1, batch_size=7), features)


def test_real_images_are_nearer_than_changed_ones(network, striped_train, striped_test):
    reference = network.extract(striped_train.images)
    real = frechet_distance(network.extract(striped_test.images), reference)
    assert frechet_distance(network.extract(striped_test.images.flip(-2)), reference) > 2 * real
    one_kind = striped_test.images[striped_test.labels[:, 0] == 1]
    assert frechet_distance(network.extract(one_kind), reference) > 2 * real


def test_the_cache_returns_the_same_network_without_training(network, striped_train, cache):
    steps = []
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    again = load_feature_network(
        striped_train, [2, 3], num_epochs=4, cache_dir=cache, progress=lambda *step: steps.append(step)
    )
    assert not steps and (torch.rand(4) == expected).all()
    assert (again.extract(striped_train.images[:9]) == network.extract(striped_train.images[:9])).all()
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert [path.suffix for path in (cache / "feature_networks").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("size", [8, 32, 64])
def test_other_image_sizes_and_grey_images(size):
    network = FeatureNetwork(1, size, [2, 2, 5])
    assert network.extract(torch.zeros(3, 1, size, size, dtype=torch.uint8)).shape == (3, 128)
