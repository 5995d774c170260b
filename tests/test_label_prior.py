from itertools import product

import torch

from jem_hf.models.label_prior_jem import PairwiseLabelPrior


def exact(prior):
    vectors = torch.tensor(list(product(*(range(v) for v in prior.num_values))))
    one_hot = prior._one_hot(vectors)
    scores = one_hot @ prior.bias + 0.5 * (one_hot @ prior.weight * one_hot).sum(1)
    return vectors, scores.softmax(0)


def test_samples_follow_the_exact_distribution():
    prior = PairwiseLabelPrior([2, 3, 2])
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 7, generator=generator)
    between = 1 - torch.block_diag(*(torch.ones(v, v) for v in (2, 3, 2)))
    prior.weight.copy_((weight + weight.T) / 2 * between)
    prior.bias.copy_(torch.randn(7, generator=generator) / 2)
    vectors, probabilities = exact(prior)
    draws = prior.sample(torch.full((30_000, 3), -1), generator=generator)
    frequency = (draws[:, None] == vectors).all(2).float().mean(0)
    torch.testing.assert_close(frequency, probabilities, atol=0.01, rtol=0)
    observed = torch.tensor([[-1, 2, -1]]).expand(30_000, -1)
    draws = prior.sample(observed, generator=generator)
    match = vectors[:, 1] == 2
    frequency = (draws[:, None] == vectors[match]).all(2).float().mean(0)
    torch.testing.assert_close(frequency, probabilities[match] / probabilities[match].sum(), atol=0.01, rtol=0)


def test_fit_recovers_frequencies_and_exclusions():
    """Labels 0 and 1 exclude each other, label 2 copies label 0 nine times in ten."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.rand(20_000, generator=generator)
    first, second = (kind < 0.3).long(), ((kind >= 0.3) & (kind < 0.5)).long()
    copied = torch.where(torch.rand(20_000, generator=generator) < 0.9, first, 1 - first)
    labels = torch.stack([first, second, copied], dim=1)
    labels[::7, 1] = -1
    prior = PairwiseLabelPrior([2, 2, 2]).fit(labels)
    vectors, probabilities = exact(prior)
    expected = torch.tensor([[0.5, 0.2], [0.3, 0.0]])
    for a, b in product((0, 1), (0, 1)):
        match = (vectors[:, 0] == a) & (vectors[:, 1] == b)
        assert abs(probabilities[match].sum() - expected[a, b]) < 0.03
    agree = vectors[:, 0] == vectors[:, 2]
    assert abs(probabilities[agree].sum() - 0.9) < 0.03


def test_exclusive_labels_stay_exclusive_and_mix():
    """One of four, or none: completions show no two together and keep the frequencies."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.multinomial(torch.tensor([0.2, 0.1, 0.3, 0.15, 0.25]), 10_000, True, generator=generator)
    labels = torch.nn.functional.one_hot(kind, 5)[:, :4]
    draws = PairwiseLabelPrior([2] * 4).fit(labels).sample(torch.full((10_000, 4), -1), generator=generator)
    assert (draws.sum(1) > 1).float().mean() < 0.01
    torch.testing.assert_close(draws.float().mean(0), labels.float().mean(0), atol=0.05, rtol=0)
