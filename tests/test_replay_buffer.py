import pytest
import torch

from jem_hf.training.buffer import ReplayBuffer, noise_images


def buffer(size, policy):
    return ReplayBuffer(torch.zeros(size, 1, 2, 2, dtype=torch.uint8), torch.zeros(size, 1).long(), policy)


def entry(value):
    return torch.full((1, 1, 2, 2), value / 128 - 1 + 1 / 256), torch.tensor([[value]])


def test_fifo_replaces_the_oldest():
    store = buffer(4, "fifo")
    for value in range(1, 7):
        store.push(*entry(value))
    assert store.images[:, 0, 0, 0].tolist() == [5, 6, 3, 4]
    assert store.labels[:, 0].tolist() == [5, 6, 3, 4]


def test_reservoir_keeps_each_with_the_same_probability():
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(20)
    for _ in range(2000):
        store = buffer(5, "reservoir")
        for value in range(20):
            store.push(*entry(value), generator=generator)
        counts[store.labels[:, 0]] += 1
    assert ((counts / 2000 - 5 / 20).abs() < 0.04).all()


def test_samples_lie_within_their_quantum():
    store = buffer(3, "fifo")
    store.push(*entry(100))
    store.push(*entry(200))
    store.push(*entry(30))
    x, labels = store.sample(500, torch.Generator().manual_seed(0))
    assert ((x - (labels[:, :, None, None] / 128 - 1)).abs() <= 1 / 128).all()
    assert set(labels.flatten().tolist()) == {30, 100, 200}


def test_round_trip():
    store, other = buffer(4, "fifo"), buffer(4, "fifo")
    for value in range(1, 7):
        store.push(*entry(value))
    other.load_state_dict(store.state_dict())
    other.push(*entry(9))
    assert other.labels[:, 0].tolist() == [5, 6, 9, 4]


def test_unknown_policy():
    with pytest.raises(ValueError, match="fifo or reservoir"):
        buffer(4, "lifo")


def test_on_disk_it_is_the_same_buffer(tmp_path):
    """A memory map of the file: the same draws, and what is pushed is in the file."""
    path, stores = tmp_path / "images", []
    for where in (None, str(path)):
        images = noise_images((40, 1, 2, 2), torch.Generator().manual_seed(0), path=where)
        stores.append(ReplayBuffer(images, torch.zeros(40, 1).long(), "reservoir"))
    assert path.read_bytes() == bytes(stores[0].images.flatten().tolist()) and len(set(path.read_bytes())) > 60
    for value in range(60):
        for store in stores:
            store.push(*entry(value), generator=torch.Generator().manual_seed(value))
    assert torch.equal(stores[0].images, stores[1].images) and torch.equal(stores[0].labels, stores[1].labels)
    assert path.read_bytes() == bytes(stores[0].images.flatten().tolist())
    drawn = [store.sample(9, torch.Generator().manual_seed(1)) for store in stores]
    assert all(torch.equal(a, b) for a, b in zip(*drawn))


def test_fifo_of_a_batch_that_wraps_around():
    store = buffer(5, "fifo")
    for values in ((1, 2, 3, 4), (5, 6, 7)):
        images, labels = zip(*map(entry, values))
        store.push(torch.cat(images), torch.cat(labels))
    assert store.images[:, 0, 0, 0].tolist() == store.labels[:, 0].tolist() == [6, 7, 3, 4, 5]
