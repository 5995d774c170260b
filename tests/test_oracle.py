import hashlib
from types import SimpleNamespace

import pytest
import torch

from jem_hf.evaluation.oracle import Oracle, load_oracle


@pytest.fixture(scope="module")
def oracle(striped_train, cache):
    return load_oracle(striped_train, [2, 3], num_epochs=8, cache_dir=cache)


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


def test_training_is_reproducible_and_leaves_the_global_generator_alone(striped_train, tmp_path):
    part = striped_train.subset(slice(0, 64))
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


def test_number_of_values_must_fit_the_labels(striped_train, tmp_path):
    with pytest.raises(ValueError, match="1 numbers of values for labels of 2 attributes"):
        load_oracle(striped_train, [2], cache_dir=tmp_path)
    with pytest.raises(ValueError, match="outside the values"):
        load_oracle(striped_train, [2, 2], cache_dir=tmp_path)
