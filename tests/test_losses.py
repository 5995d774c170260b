"""Losses against gradients worked out by hand."""

import pytest
import torch

from jem_hf.models.heads_jem import cross_entropy
from jem_hf.models.label_distributions_jem import ProductDistribution
from jem_hf.training.objectives import (
    contrastive_divergence,
    equilibrium_matching,
    nearest_neighbour_entropy,
    optimal_transport_pairing,
    random_observed_sets,
)


def test_contrastive_divergence_gradient_in_closed_form():
    """log p~(x, y) = theta_y . x over x in {0, 1}^3, y in {0, 1}: with exact model samples the gradient is known.

    d/dtheta_y of the negative log-likelihood is E_model[1(y) x] - E_data[1(y) x]; expectations here are sums.
    """
    theta = torch.tensor([[0.5, -1.0, 0.3], [-0.2, 0.8, 1.1]], dtype=torch.float64, requires_grad=True)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    scores = states @ theta.detach().T
    probabilities = scores.flatten().softmax(0).view(8, 2)
    expected_model = torch.einsum("sy,sd->yd", probabilities, states)

    data = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0])
    expected_data = torch.stack([data[labels == y].sum(0) / 4 for y in (0, 1)])

    # samples in exact proportion to the model: as many copies as probability, weighted through repetition
    counts = (probabilities * 200_000).round().long().flatten()
    index = torch.arange(16).repeat_interleave(counts)
    samples, sample_labels = states[index // 2], index % 2

    def log_joint(x, y):
        return ProductDistribution((x @ theta.T)[:, None, :]).log_joint(y[:, None])

    loss = contrastive_divergence(log_joint(data, labels), log_joint(samples, sample_labels))
    (gradient,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(gradient, expected_model - expected_data, atol=1e-5, rtol=0)


def test_missing_labels_have_the_posterior_gradient():
    """With y missing, d log p~(x)/d logit_v = p(v|x): what imputing would get wrong."""
    logits = torch.tensor([[[0.2, -1.0, 0.7]]], requires_grad=True)
    distribution = ProductDistribution(logits)
    (gradient,) = torch.autograd.grad(distribution.log_joint(torch.tensor([[-1]])).sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(-1).detach())
    assert torch.equal(distribution.log_joint(torch.tensor([[-1]])), distribution.log_marginal())


def test_cross_entropy_leaves_missing_labels_out():
    logits = torch.tensor([[[0.0, 2.0], [1.0, 0.0]], [[0.5, 0.5], [3.0, -1.0]]])
    labels = torch.tensor([[1, -1], [-1, 0]])
    expected = -(logits[0, 0].log_softmax(0)[1] + logits[1, 1].log_softmax(0)[0]) / 2
    torch.testing.assert_close(cross_entropy(logits, labels), expected)
    assert cross_entropy(logits, torch.full((2, 2), -1)) == 0


@pytest.mark.parametrize("optimal_transport", [True, False])
def test_warmup_gradient_of_a_quadratic_energy(optimal_transport):
    """For log p~(x) = -a |x|^2 / 2 the field is -a x: loss and d loss/d a follow by hand."""
    a = torch.tensor(0.7, requires_grad=True)

    def label_distribution(x):  # one label of two equal values; the constant of their sum has no gradient
        energy = a * x.square().flatten(1).sum(1) / 2
        return ProductDistribution(-energy[:, None, None].expand(-1, 1, 2))

    x1 = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(16, 1, dtype=torch.long)
    settings = dict(generator=torch.Generator().manual_seed(9), optimal_transport=optimal_transport)
    loss = equilibrium_matching(label_distribution, x1, labels, **settings)
    (gradient,) = torch.autograd.grad(loss, a)

    generator = torch.Generator().manual_seed(9)  # the same draws again
    x0 = torch.empty_like(x1).normal_(generator=generator)
    x0 = x0[optimal_transport_pairing(x0, x1)] if optimal_transport else x0
    t = torch.rand(16, 1, 1, 1, generator=generator)
    x_t = (1 - t) * x0 + t * x1
    c = torch.minimum(torch.tensor(1.0), (1 - t) / 0.2)
    residual = -0.7 * x_t - c * (x1 - x0)
    torch.testing.assert_close(loss, residual.square().mean())
    torch.testing.assert_close(gradient, (2 * residual * -x_t).mean())


def test_optimal_transport_pairing_is_optimal():
    from itertools import permutations

    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 6, 1, 2, 2, generator=generator)
    cost = min((x0[list(order)] - x1).square().sum() for order in permutations(range(6)))
    torch.testing.assert_close((x0[optimal_transport_pairing(x0, x1)] - x1).square().sum(), cost)


def test_optimal_transport_pairing_keeps_to_its_groups():
    """Five images in groups of two: each group is paired as it is alone."""
    x0, x1 = torch.randn(2, 5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    groups = [optimal_transport_pairing(x0[i : i + 2], x1[i : i + 2]) + i for i in (0, 2, 4)]
    assert torch.equal(optimal_transport_pairing(x0, x1, group_size=2), torch.cat(groups))
    assert not torch.equal(optimal_transport_pairing(x0, x1), torch.cat(groups))


def test_nearest_neighbour_entropy_and_its_gradient():
    others = torch.tensor([[0.0, 0.0], [10.0, 0.0]]).view(2, 2, 1, 1)
    x = torch.tensor([[3.0, 4.0]]).view(1, 2, 1, 1).requires_grad_(True)
    entropy = nearest_neighbour_entropy(x, others)
    torch.testing.assert_close(entropy, torch.tensor(5.0).log())
    (gradient,) = torch.autograd.grad(entropy, x)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([3.0, 4.0]) / 25)


def test_observed_sets_cover_all_none_and_few():
    labels = torch.ones(20_000, 23, dtype=torch.long)
    labels[:, 0] = -1
    observed = random_observed_sets(labels, torch.Generator().manual_seed(0))
    assert (observed[:, 0] == -1).all()
    num = (observed >= 0).sum(1)
    assert 0.49 < (num == 22).float().mean() < 0.56
    assert (num == 0).float().mean() > 0.1
    assert ((num >= 1) & (num <= 3)).float().mean() > 0.14
    assert ((num > 3) & (num < 22)).float().mean() > 0.14
