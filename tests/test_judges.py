"""The networks that judge drawn images."""

import hashlib

import pytest
import torch
from transformers.utils import logging

from jem_hf import AttributeTensors
from jem_hf.evaluation.judges import FeatureNetwork, Oracle, load_feature_network, load_oracle
from jem_hf.metrics.distances import frechet_distance


@pytest.fixture(scope="module")
def oracle(striped_train, cache):
    return load_oracle(striped_train, [2, 3], num_epochs=8, cache_dir=cache)


@pytest.fixture(scope="module")
def network(striped_train, cache):
    return load_feature_network(striped_train, [2, 3], num_epochs=4, cache_dir=cache)


def digest(oracle):
    tensors = oracle.state_dict().items()
    return hashlib.sha256(b"".join(name.encode() + t.contiguous().numpy().tobytes() for name, t in tensors)).digest()


def test_learns_binary_and_categorical_attributes_despite_missing_labels(oracle, striped_test):
    predicted = oracle.predict(striped_test.images)
    assert predicted.shape == (300, 2) and predicted.dtype == torch.int64
    assert (predicted == striped_test.labels).float().mean(0).min() > 0.97


def test_probabilities_sum_to_one_over_the_values_that_an_attribute_has(oracle, striped_train):
    probabilities = oracle.predict_proba(striped_train.images)
    assert probabilities.shape == (600, 2, 3)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(600, 2))
    assert (probabilities[:, 0, 2] == 0).all() and (probabilities[:, 1, 2] > 0).all()


def test_an_image_is_judged_alike_in_any_batch_and_pixel_range(oracle, striped_train):
    images = striped_train.images[:50]
    together = oracle.predict_proba(images)
    torch.testing.assert_close(oracle.predict_proba(images.float() / 127.5 - 1), together)
    torch.testing.assert_close(oracle.predict_proba(images, batch_size=7), together)
    torch.testing.assert_close(oracle.predict_proba(images[3:4]), together[3:4])


def test_the_cache_returns_the_same_weights_without_training(oracle, striped_train, cache):
    steps = []
    again = load_oracle(
        striped_train, [2, 3], num_epochs=8, cache_dir=cache, progress=lambda *step: steps.append(step)
    )
    assert digest(again) == digest(oracle) and not steps
    assert [path.suffix for path in (cache / "oracles").iterdir()] == [".safetensors"]


def test_everything_that_changes_the_weights_changes_the_key(striped_train, tmp_path, monkeypatch):
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path))
    part = striped_train.subset(slice(0, 64))
    other_images = AttributeTensors(part.images.flip(0), part.labels, part.attributes)
    other_labels = AttributeTensors(part.images, part.labels.flip(0), part.attributes)
    steps = []
    load_oracle(part, [2, 3], num_epochs=1, progress=lambda *step: steps.append(step))
    assert steps == [(1, 1)]
    load_oracle(part, [2, 3], num_epochs=1, seed=5)
    load_oracle(part, [2, 3], num_epochs=2)
    load_oracle(part, [2, 4], num_epochs=1)
    load_oracle(other_images, [2, 3], num_epochs=1)
    load_oracle(other_labels, [2, 3], num_epochs=1)
    assert len(list((tmp_path / "oracles").iterdir())) == 6


def test_training_is_reproducible_and_leaves_the_global_generator_alone(striped_train, tmp_path):
    part = striped_train.subset(slice(0, 64))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = load_oracle(part, [2, 3], num_epochs=2, cache_dir=tmp_path / "a")
    assert (torch.rand(4) == expected).all()
    assert digest(first) == digest(load_oracle(part, [2, 3], num_epochs=2, cache_dir=tmp_path / "b"))


@pytest.mark.parametrize("size", [8, 32, 48, 64, 128])
def test_oracle_of_other_image_sizes_and_grey_images(size):
    oracle = Oracle(1, [2, 2, 5])
    assert oracle.predict_proba(torch.zeros(3, 1, size, size, dtype=torch.uint8)).shape == (3, 3, 5)


def test_number_of_values_must_fit_the_labels(striped_train, tmp_path):
    with pytest.raises(ValueError, match="1 numbers of values for labels of 2 attributes"):
        load_oracle(striped_train, [2], cache_dir=tmp_path)
    with pytest.raises(ValueError, match="outside the values"):
        load_oracle(striped_train, [2, 2], cache_dir=tmp_path)


def test_features_are_standardised_over_the_training_images(network, striped_train):
    features = network.extract(striped_train.images)
    assert features.shape == (600, 128) and features.dtype == torch.float64
    torch.testing.assert_close(features.mean(0), torch.zeros(128).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(128).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        network.extract(striped_train.images / 127.5 - 1, batch_size=7), features, atol=1e-5, rtol=0
    )


def test_real_images_are_nearer_than_changed_ones(network, striped_train, striped_test):
    reference = network.extract(striped_train.images)
    real = frechet_distance(network.extract(striped_test.images), reference)
    assert frechet_distance(network.extract(striped_test.images.flip(-2)), reference) > 2 * real
    one_kind = striped_test.images[striped_test.labels[:, 0] == 1]
    assert frechet_distance(network.extract(one_kind), reference) > 2 * real


def test_the_cache_returns_the_same_features_without_training(network, striped_train, cache):
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
def test_features_of_other_image_sizes_and_grey_images(size):
    network = FeatureNetwork(1, [2, 2, 5])
    assert network.extract(torch.zeros(3, 1, size, size, dtype=torch.uint8)).shape == (3, 128)


@pytest.mark.parametrize("num_images", [1, 2, 65])
def test_few_images_are_enough_to_learn_from(num_images, tmp_path):
    """A batch of one image is left over after 64."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, 3, 8, 8), generator=generator, dtype=torch.uint8)
    train = AttributeTensors(images, torch.zeros(num_images, 2, dtype=torch.int64), ["a", "b"])
    oracle = load_oracle(train, [2, 3], num_epochs=1, cache_dir=tmp_path)
    network = load_feature_network(train, [2, 3], num_epochs=1, cache_dir=tmp_path)
    assert oracle.predict_proba(images).isfinite().all() and network.extract(images).isfinite().all()
    assert oracle.predict(images[:0]).shape == (0, 2) and network.extract(images[:0]).shape == (0, 128)


def test_a_cache_that_cannot_be_written_is_named_and_costs_nothing(striped_train, tmp_path, caplog):
    part, nowhere = striped_train.subset(slice(0, 64)), tmp_path / "file"
    nowhere.write_text("")
    logging.enable_propagation()
    try:
        oracle = load_oracle(part, [2, 3], num_epochs=1, cache_dir=nowhere)
    finally:
        logging.disable_propagation()
    assert str(nowhere) in caplog.text and "--cache_dir or JEM_HF_CACHE" in caplog.text
    assert digest(oracle) == digest(load_oracle(part, [2, 3], num_epochs=1, cache_dir=tmp_path / "cache"))
