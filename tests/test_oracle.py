import hashlib
from types import SimpleNamespace

import pytest
import torch

from jem_hf.oracle import Oracle, load_oracle


def striped_images(num_images, seed):
    """16x16 noise; attribute 0: a bright stripe at the bottom; attribute 1: no, a high or a wide block."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (num_images, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 6, (num_images,), generator=generator)
    labels = torch.stack([labels % 2, labels // 2], 1)
    images[labels[:, 0] == 1, :, 13:] = 220
    images[labels[:, 1] == 1, :, 3:12, 6:10] = 250
    images[labels[:, 1] == 2, :, 6:10, 3:12] = 250
    return SimpleNamespace(images=images, labels=labels, attributes=["stripe", "block"])


@pytest.fixture(scope="module")
def train():
    split = striped_images(600, seed=0)
    split.labels[::5, 0] = -1
    split.labels[1::5, 1] = -1
    return split


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def oracle(train, cache):
    return load_oracle(train, [2, 3], num_epochs=8, cache_dir=cache)


def digest(oracle):
    tensors = oracle.state_dict().items()
    return hashlib.sha256(b"".join(name.encode() + t.contiguous().numpy().tobytes() for name, t in tensors)).digest()


def test_learns_binary_and_categorical_attributes_despite_missing_labels(oracle):
    test = striped_images(300, seed=1)
    predicted = oracle.predict(test.images)
    assert predicted.shape == (300, 2) and predicted.dtype == torch.int64
    assert (predicted == test.labels).float().mean(0).min() > 0.97


def test_probabilities_sum_to_one_over_the_values_that_an_attribute_has(oracle, train):
    probabilities = oracle.predict_proba(train.images)
    assert probabilities.shape == (600, 2, 3)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(600, 2))
    assert (probabilities[:, 0, 2] == 0).all() and (probabilities[:, 1, 2] > 0).all()


def test_an_image_is_judged_alike_in_any_batch_and_pixel_range(oracle, train):
    images = train.images[:50]
    together = oracle.predict_proba(images)
    torch.testing.assert_close(oracle.predict_proba(images.float() / 127.5 - 1), together)
    torch.testing.assert_close(oracle.predict_proba(images, batch_size=7), together)
    torch.testing.assert_close(oracle.predict_proba(images[3:4]), together[3:4])


def test_the_cache_returns_the_same_weights_without_training(oracle, train, cache):
    steps = []
    again = load_oracle(train, [2, 3], num_epochs=8, cache_dir=cache, progress=lambda *step: steps.append(step))
    assert digest(again) == digest(oracle) and not steps
    assert [path.suffix for path in (cache / "oracles").iterdir()] == [".safetensors"]


def test_everything_that_changes_the_weights_changes_the_key(train, tmp_path, monkeypatch):
    monkeypatch.setenv("JEM_HF_CACHE", str(tmp_path))
    part = SimpleNamespace(images=train.images[:64], labels=train.labels[:64])
    other_images = SimpleNamespace(images=part.images.flip(0), labels=part.labels)
    other_labels = SimpleNamespace(images=part.images, labels=part.labels.flip(0))
    steps = []
    load_oracle(part, [2, 3], num_epochs=1, progress=lambda *step: steps.append(step))
    assert steps == [(1, 1)]
    load_oracle(part, [2, 3], num_epochs=1, seed=5)
    load_oracle(part, [2, 3], num_epochs=2)
    load_oracle(part, [2, 4], num_epochs=1)
    load_oracle(other_images, [2, 3], num_epochs=1)
    load_oracle(other_labels, [2, 3], num_epochs=1)
    assert len(list((tmp_path / "oracles").iterdir())) == 6


def test_training_is_reproducible_and_leaves_the_global_generator_alone(train, tmp_path):
    part = SimpleNamespace(images=train.images[:64], labels=train.labels[:64])
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = load_oracle(part, [2, 3], num_epochs=2, cache_dir=tmp_path / "a")
    assert (torch.rand(4) == expected).all()
    assert digest(first) == digest(load_oracle(part, [2, 3], num_epochs=2, cache_dir=tmp_path / "b"))


@pytest.mark.parametrize("size", [8, 32, 48, 64, 128])
def test_other_image_sizes_and_grey_images(size):
    oracle = Oracle(1, size, [2, 2, 5])
    assert oracle.predict_proba(torch.zeros(3, 1, size, size, dtype=torch.uint8)).shape == (3, 3, 5)


def test_number_of_values_must_fit_the_labels(train, tmp_path):
    with pytest.raises(ValueError, match="1 numbers of values for labels of 2 attributes"):
        load_oracle(train, [2], cache_dir=tmp_path)
    with pytest.raises(ValueError, match="outside the values"):
        load_oracle(train, [2, 2], cache_dir=tmp_path)
