import pytest
import torch

from jem_hf.training.negatives import ReplayBuffer, noise_images


def buffer(size, policy):
    return ReplayBuffer(torch.zeros(size, 1, 2, 2, dtype=torch.uint8), policy)


def images_of(*values):
    """Images (N, 1, 2, 2) in [-1, 1] that a buffer holds as these values."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2) / 128 - 1 + 1 / 256


def held(store):
    assert (store.images == store.images[:, :, :1, :1]).all()  # no image is made of two
    return store.images[:, 0, 0, 0].tolist()


def test_fifo_replaces_the_oldest():
    store = buffer(4, "fifo")
    for value in range(1, 7):
        store.push(images_of(value))
    assert held(store) == [5, 6, 3, 4]


def test_fifo_of_a_batch_that_wraps_around():
    store = buffer(5, "fifo")
    store.push(images_of(1, 2, 3, 4))
    store.push(images_of(5, 6, 7))
    assert held(store) == [6, 7, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_reservoir_keeps_each_with_the_same_probability(batch_size):
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(21)
    for _ in range(2000):
        store = buffer(5, "reservoir")
        for values in torch.arange(1, 21).split(batch_size):
            store.push(images_of(*values), generator)
        counts[held(store)] += 1
    assert counts[0] == 0  # no place is left empty
    assert ((counts[1:] / 2000 - 5 / 20).abs() < 0.04).all()


def test_a_reservoir_is_full_when_as_many_have_come():
    for seed in range(20):
        store = buffer(3, "reservoir")
        for values in ((1, 2), (3, 4)):
            store.push(images_of(*values), torch.Generator().manual_seed(seed))
        assert 0 not in held(store)


@pytest.mark.parametrize("policy, size", [("fifo", 3), ("reservoir", 1)])
def test_of_two_writes_to_one_place_the_last_counts(policy, size):
    """As if they had come one by one; what is undone is what was there before both."""
    store, one_by_one, dice = buffer(size, policy), buffer(size, policy), torch.Generator()
    store.overwritten = []
    store.push(images_of(*range(1, 9)), dice.manual_seed(0))
    for value, chance in zip(range(1, 9), torch.rand(8, generator=dice.manual_seed(0), dtype=torch.float64)):
        if policy == "fifo" or chance * value < 1:
            one_by_one.images[(value - 1) % size] = value
    assert held(store) == held(one_by_one)
    store.undo(store.overwritten)
    assert held(store) == [0] * size and store.num_seen == 0


def test_samples_lie_within_their_quantum():
    store = buffer(3, "fifo")
    store.push(images_of(100, 200, 30))
    x = store.sample(500, torch.Generator().manual_seed(0))
    values = ((x + 1) * 128).floor()
    assert (values == values[:, :, :1, :1]).all() and set(values.flatten().tolist()) == {30, 100, 200}


def test_round_trip():
    store, other = buffer(4, "fifo"), buffer(4, "fifo")
    store.push(images_of(*range(1, 7)))
    state = store.state_dict() | {"labels": torch.zeros(4, 1)}  # as an earlier version wrote it
    other.load_state_dict(state)
    other.push(images_of(9))
    assert held(other) == [5, 6, 9, 4]


def test_unknown_policy():
    with pytest.raises(ValueError, match="fifo or reservoir"):
        buffer(4, "lifo")


def test_on_disk_it_is_the_same_buffer(tmp_path):
    """A memory map of the file: the same samples, and what is pushed is in the file."""
    path, stores = tmp_path / "images", []
    for where in (None, str(path)):
        images = noise_images((40, 1, 2, 2), torch.Generator().manual_seed(0), path=where)
        stores.append(ReplayBuffer(images, "reservoir"))
    assert path.read_bytes() == bytes(stores[0].images.flatten().tolist()) and len(set(path.read_bytes())) > 60
    for value in range(60):
        for store in stores:
            store.push(images_of(value), torch.Generator().manual_seed(value))
    assert torch.equal(stores[0].images, stores[1].images)
    assert path.read_bytes() == bytes(stores[0].images.flatten().tolist())
    sampled = [store.sample(9, torch.Generator().manual_seed(1)) for store in stores]
    assert torch.equal(*sampled)
