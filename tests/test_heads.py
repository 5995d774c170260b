"""Every head against sums over all label vectors."""

from itertools import product

import pytest
import torch
from scipy.stats import chisquare

from jem_hf import JemModel
from jem_hf.models import label_distributions_jem
from jem_hf.models.heads_jem import HEADS
from jem_hf.models.label_samplers_jem import one_hot
from jem_hf.training.arguments import JemTrainingArguments
from jem_hf.training.trainer import JemTrainer

NUM_VALUES = [2, 3, 2]
VECTORS = torch.tensor(list(product(*map(range, NUM_VALUES))))


@pytest.fixture(params=HEADS)
def head(request):
    torch.manual_seed(3)
    head = HEADS[request.param](6, NUM_VALUES)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    return head.requires_grad_(False)


@pytest.fixture
def potentials(head):
    return head(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def scores(head, potentials):
    """log p~(x, y) (12, 4), one label vector at a time."""
    encoded = one_hot(VECTORS, NUM_VALUES)
    return torch.stack([head.score(potentials, each.expand(4, -1, -1)) for each in encoded])


@pytest.fixture
def sampled(head, monkeypatch):
    """The distribution of labels by sampling, however few they are; exact in any case for the head "product"."""
    monkeypatch.setattr(label_distributions_jem, "MAX_ENUMERATED", 1)
    return head.distribution


def test_labels_interact_unless_the_head_is_the_product(head, scores):
    """log p~ is a sum of one term a label if and only if its mixed differences vanish."""
    table = scores.view(2, 3, 2, 4)
    mixed = table[1, 1] - table[0, 1] - table[1, 0] + table[0, 0]
    assert (mixed.abs().max() < 1e-5) == (type(head) is HEADS["product"])


def test_sums_are_exact(head, potentials, scores):
    distribution = head.distribution(potentials)
    assert distribution.is_exact
    for vector, score in zip(VECTORS, scores):
        torch.testing.assert_close(distribution.log_joint(vector.expand(4, -1)), score)
    torch.testing.assert_close(distribution.log_marginal(), scores.logsumexp(0))
    for observed in product([-1, 1], [-1, 2], [-1, 0]):
        labels = torch.tensor(observed).expand(4, -1)
        match = ((labels[0] == VECTORS) | (labels[0] < 0)).all(1)
        torch.testing.assert_close(distribution.log_joint(labels), scores[match].logsumexp(0))
    logits, error = distribution.marginal_logits()
    posterior = scores.softmax(0)
    for k, num in enumerate(NUM_VALUES):
        expected = torch.stack([posterior[VECTORS[:, k] == v].sum(0) for v in range(num)], 1)
        torch.testing.assert_close(logits[:, k].softmax(-1)[:, :num], expected)
    assert (logits[:, 0, 2] == -torch.inf).all() and (error == 0).all()
    given = torch.tensor([[-1, 2, -1]]).expand(4, -1)
    rows = VECTORS[:, 1] == 2
    posterior = scores[rows].softmax(0)
    logits, _ = distribution.marginal_logits(given)
    for k, num in enumerate(NUM_VALUES):
        expected = torch.stack([posterior[VECTORS[rows, k] == v].sum(0) for v in range(num)], 1)
        torch.testing.assert_close(logits[:, k].softmax(-1)[:, :num], expected)


def test_conditionals_are_exact(head, potentials, scores):
    labels = torch.tensor([[1, 2, 0]]).expand(4, -1)
    conditional = head.distribution(potentials).conditional_logits(labels).softmax(-1)
    for k, num in enumerate(NUM_VALUES):
        others = torch.arange(3) != k
        rows = (VECTORS[:, others] == labels[0, others]).all(1)
        torch.testing.assert_close(conditional[:, k, :num], scores[rows].softmax(0).T)
        assert (conditional[:, k, num:] == 0).all()


@pytest.mark.parametrize("start", [False, True])
def test_draws_by_gibbs_follow_the_posterior(potentials, scores, sampled, start):
    """Chi-square over the label vectors with one observed label; false alarms one in a thousand."""
    image, copies = 2, 6000
    distribution = sampled(potentials[image].expand(copies, *potentials.shape[1:]))
    generator = torch.Generator().manual_seed(5)
    labels = torch.tensor([[-1, 1, -1]]).expand(copies, -1)
    drawn = distribution.draw(labels, generator)
    if start:
        drawn = distribution.draw(labels, generator, start=drawn)
    assert (drawn[:, 1] == 1).all()
    rows = VECTORS[:, 1] == 1
    expected = scores[rows, image].softmax(0).double() * copies
    observed = (drawn[:, None] == VECTORS[rows]).all(-1).sum(0)
    assert chisquare(observed.numpy(), (expected / expected.sum() * copies).numpy()).pvalue > 0.001


def test_estimates_agree_with_the_sums(potentials, scores, sampled):
    """Marginals within and the weights of 2,000 chains for p~(x, y_O), within five standard errors."""
    logits, error = sampled(potentials).marginal_logits()
    posterior = scores.softmax(0)
    expected = torch.stack([posterior[VECTORS[:, k] == 1].sum(0) for k in range(3)], 1)
    assert ((logits.softmax(-1)[:, :, 1] - expected).abs() <= 5 * error[:, :, 1] + 0.01).all()
    many = potentials.repeat_interleave(2000, 0)
    labels = torch.tensor([[-1, 2, -1]]).expand(len(many), -1)
    exact = scores[VECTORS[:, 1] == 2].logsumexp(0)
    weights = (sampled(many).log_joint(labels).view(4, 2000) - exact[:, None]).exp()
    assert ((weights.mean(1) - 1).abs() <= 5 * weights.std(1) / 2000**0.5 + 1e-4).all()


def test_gradient_of_an_estimated_sum_is_right_on_average(head, potentials, sampled):
    """Fisher's identity, with respect to the potentials of one image in 4,000 chains."""
    one = potentials[:1].clone().requires_grad_(True)
    many = one.expand(4000, *one.shape[1:])
    (gradient,) = torch.autograd.grad(sampled(many).log_marginal().mean(), one)
    encoded = one_hot(VECTORS, NUM_VALUES)
    exact = torch.stack([head.score(one, each[None]) for each in encoded]).logsumexp(0)
    (expected,) = torch.autograd.grad(exact.sum(), one)
    torch.testing.assert_close(gradient, expected, atol=0.08, rtol=0)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("objective", ["warmup", "joint_cd"])
def test_every_head_trains_and_is_saved(name, objective, config, tensors, tmp_path, monkeypatch):
    """Two steps change every parameter; what is loaded is what was saved. Sums over labels are sampled."""
    monkeypatch.setattr(label_distributions_jem, "MAX_ENUMERATED", 1)
    config.head = name
    torch.manual_seed(0)
    model = JemModel(config)
    before = {name: value.clone() for name, value in model.named_parameters()}
    args = JemTrainingArguments(
        tmp_path, objective=objective, max_steps=2, per_device_train_batch_size=8, chain_steps=3, buffer_size=16,
        use_cpu=True, disable_tqdm=True, save_strategy="no", sample_grid=0,
    )  # fmt: skip
    JemTrainer(model, args, train_dataset=tensors).train()
    assert all(
        not torch.equal(before[name], value) for name, value in model.named_parameters() if "energy.bias" not in name
    )
    model.eval().save_pretrained(tmp_path / "saved")
    loaded = JemModel.from_pretrained(tmp_path / "saved")
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(loaded(x).energy, model(x).energy)
    torch.testing.assert_close(loaded.predict_proba(x), model.predict_proba(x))
