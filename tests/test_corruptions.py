import pytest
import torch
from test_autoencoder import model_of_codes

from jem_hf import JemTrainingArguments
from jem_hf.training.corruptions import CORRUPTIONS, corrupt
from jem_hf.training.negatives import NegativeSampler
from jem_hf.training.objectives import contrastive_divergence, logistic_contrast


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x():
    """Smooth images, each another."""
    coarse = torch.rand(24, 3, 4, 4, generator=seeded(9)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear").clamp(-1, 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_kind_is_seeded_and_changes_every_image(name, x):
    broken = CORRUPTIONS[name](x, seeded())
    assert broken.shape == x.shape and broken.abs().max() <= 1
    assert torch.equal(broken, CORRUPTIONS[name](x, seeded()))
    assert not torch.equal(broken, CORRUPTIONS[name](x, seeded(1))) or name in ("quadrants", "shuffled")
    assert ((broken - x).abs().flatten(1).amax(1) > 0.01).all()


def test_what_the_kinds_do(x):
    noise = torch.rand(24, 3, 32, 32, generator=seeded()) * 2 - 1
    assert CORRUPTIONS["blurred"](noise, seeded()).var() < 0.7 * noise.var()
    assert torch.equal(
        CORRUPTIONS["shuffled"](noise, seeded()).flatten(2).sort().values, noise.flatten(2).sort().values
    )
    mixed = CORRUPTIONS["quadrants"](x, seeded())
    assert torch.equal(mixed[:, :, :16, :16], x[:, :, :16, :16]) and torch.equal(
        mixed[1:, :, :16, 16:], x[:-1, :, :16, 16:]
    )
    assert CORRUPTIONS["one_colour"](x, seeded()).flatten(2).std(2).max() < 1e-6
    kept = (CORRUPTIONS["occluded"](x, seeded()) == x).float().flatten(1).mean(1)
    assert kept.min() > 0.7 and kept.max() < 1
    difference = CORRUPTIONS["noisy"](x * 0.1, seeded()) - x * 0.1
    assert difference.flatten(1).std(1).min() > 0.02 and difference.flatten(1).std(1).max() < 0.33


def test_every_kind_has_its_share(x):
    many = x.repeat(30, 1, 1, 1)
    broken = corrupt(many, seeded())
    flat = (broken.flatten(2).std(2).amax(1) < 1e-6).float().mean()
    assert 0.1 < flat < 0.19  # one of seven
    assert ((broken - many).abs().flatten(1).amax(1) > 0.01).all()


def test_logistic_contrast_by_hand():
    data = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    samples = torch.tensor([0.5, 3.0], dtype=torch.float64, requires_grad=True)
    loss = logistic_contrast(data, samples, offset=0.5, temperature=2.0)
    expected = sum(
        (1 + torch.exp(-(d - 0.5) / 2)).log() + (1 + torch.exp((s - 0.5) / 2)).log() for d, s in zip(data, samples)
    )
    torch.testing.assert_close(loss, expected)
    of_data, of_samples = torch.autograd.grad(loss, (data, samples))
    torch.testing.assert_close(of_data, -(1 - torch.sigmoid((data - 0.5) / 2)).detach() / 2)
    torch.testing.assert_close(of_samples, torch.sigmoid((samples - 0.5) / 2).detach() / 2)


def test_logistic_contrast_is_contrastive_divergence_while_nothing_is_told_apart():
    data, samples = (torch.randn(50, generator=seeded(i)).requires_grad_(True) for i in range(2))
    hot = torch.autograd.grad(logistic_contrast(data, samples, 0.0, 1e5), (data, samples))
    plain = torch.autograd.grad(contrastive_divergence(data, samples), (data, samples))
    for one, other in zip(hot, plain):
        torch.testing.assert_close(2 * one, other, atol=1e-5, rtol=1e-3)


def test_the_offset_is_set_once_and_saved(tmp_path):
    model = model_of_codes()
    args = JemTrainingArguments(str(tmp_path), buffer_size=16, per_device_train_batch_size=4, use_cpu=True)
    negatives = NegativeSampler(model, args, seeded())
    assert negatives.state_dict() == {}
    assert negatives.offset_of(torch.tensor([3.0, 5.0]), torch.tensor([0.0, 2.0])).item() == 2.5
    assert negatives.offset_of(torch.tensor([9.0]), torch.tensor([9.0])).item() == 2.5
    again = NegativeSampler(model, args, seeded())
    again.load_state_dict(negatives.state_dict())
    assert again.offset.item() == 2.5 and again.buffer is None


def test_random_numbers_of_steps(tmp_path):
    model, x = model_of_codes(), torch.rand(8, 3, 16, 16) * 2 - 1
    settings = dict(
        chain_steps=3, chain_random_steps=True, chain_start="broken_data", chain_noise=0.0, chain_step_size=1e-3
    )
    args = JemTrainingArguments(str(tmp_path), buffer_size=16, per_device_train_batch_size=4, use_cpu=True, **settings)
    negatives, evaluations = NegativeSampler(model, args, seeded()), []
    model.backbone.register_forward_hook(lambda *_: evaluations.append(1))
    lengths = set()
    for _ in range(20):
        evaluations.clear()
        codes, labels, _ = negatives.sample(x)
        lengths.add(len(evaluations))
        assert codes.shape == (8, 4, 8, 8) and (labels >= 0).all()
    assert lengths == {1, 2, 3}
