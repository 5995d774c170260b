import pytest
import torch

from jem_hf import JemTrainingArguments
from jem_hf.models.sampling_jem import flow_steps, run_chain
from jem_hf.training.negatives import CHAIN_STARTS, NUM_FLOW_STEPS, NegativeSampler, ReplayBuffer


def sampler(model, tmp_path, **kwargs):
    settings = dict(objective="joint_cd", chain_steps=3, buffer_size=64, use_cpu=True, per_device_train_batch_size=8)
    args = JemTrainingArguments(str(tmp_path), **{**settings, **kwargs})
    return NegativeSampler(model, args, torch.Generator().manual_seed(0))


@pytest.fixture
def data(tensors):
    return tensors.images[:32] / 127.5 - 1


@pytest.mark.parametrize("start", CHAIN_STARTS)
def test_chains_end_in_the_buffer_and_come_back(start, model, data, tmp_path):
    """The same seed gives the same chains; their ends replace the oldest of the buffer; a copy goes on alike."""
    first, again = (sampler(model, tmp_path, chain_start=start) for _ in range(2))
    x, labels, others = first.sample(data)
    assert torch.equal(x, again.sample(data)[0]) and x.abs().max() <= 1
    assert labels.shape == (32, 3) and (labels >= 0).all() and len(others) == 100
    held = first.buffer.images[:32] / 128 - 1
    assert (held - x).abs().max() <= 1 / 64
    again.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    again.generator.set_state(first.generator.get_state())
    assert torch.equal(first.sample(data)[0], again.sample(data)[0])


def test_starts(model, data, tmp_path):
    starts = {}
    for name in CHAIN_STARTS:
        negatives = sampler(model, tmp_path, restart_probability=0.25)
        white = torch.full((2000, *data.shape[1:]), 255, dtype=torch.uint8)  # unlike noise and data
        negatives.buffer = ReplayBuffer(white)
        starts[name] = CHAIN_STARTS[name](negatives, data.repeat(32, 1, 1, 1))
    many = data.repeat(32, 1, 1, 1)
    assert torch.equal(starts["data"], many)
    assert starts["noise"].abs().max() <= 1 and abs(starts["noise"].var() - 1 / 3) < 0.01
    near = (starts["noised_data"] - many).flatten(1).square().mean(1)
    assert near.min() < 0.05 and near.max() > 0.5
    white = (starts["buffer"] > 0.9).flatten(1).all(1)
    assert 0.2 < 1 - white.float().mean() < 0.3  # restarted from noise
    assert 0.2 < (starts["mixed"] > 0.9).flatten(1).all(1).float().mean() < 0.3  # a third, less restarts


def test_flow_starts_are_short_flows_from_noise(model, data, tmp_path):
    negatives = sampler(model, tmp_path)
    generator = torch.Generator().manual_seed(0)
    noise = torch.empty_like(data).normal_(generator=generator)
    settings = dict(num_steps=NUM_FLOW_STEPS, step_size=flow_steps(NUM_FLOW_STEPS, model.config.flow_time))
    free = torch.full((32, 3), -1)
    expected, _ = run_chain(
        "flow", model.label_distribution, noise, free, gibbs_every=1, generator=generator, **settings
    )
    assert torch.equal(CHAIN_STARTS["flow"](negatives, data), expected.clamp(-1, 1))


def test_buffer_on_disk_draws_the_same_and_comes_back(model, data, tmp_path):
    in_memory, on_disk, again = (
        sampler(model, tmp_path / name, buffer_on_disk=name != "memory") for name in ("memory", "disk", "again")
    )
    assert torch.equal(in_memory.sample(data)[0], on_disk.sample(data)[0])
    held = (tmp_path / "disk" / "replay_buffer_0.uint8").read_bytes()
    assert held == bytes(in_memory.buffer.images.flatten().tolist())
    again.generator.set_state(on_disk.generator.get_state())
    again.load_state_dict(on_disk.state_dict())
    assert (tmp_path / "again" / "replay_buffer_0.uint8").read_bytes() == held
    assert torch.equal(again.sample(data)[0], on_disk.sample(data)[0])
    assert again.generator.get_state().equal(on_disk.generator.get_state())
