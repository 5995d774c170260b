"""Samplers of labels against all label vectors. Each statistical test fails a right sampler with probability .001."""

import pytest
import torch
from scipy.stats import chi2
from targets import FALSE_ALARM, PairwiseTarget, goodness_of_fit

from jem_hf.models.label_samplers_jem import LABEL_SAMPLERS, gibbs, gibbs_with_gradients, one_hot, start_labels

STEPS = {"gibbs": 12, "gibbs_with_gradients": 60}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", LABEL_SAMPLERS)
@pytest.mark.parametrize(
    "num_values, given, temperature",
    [
        ([2] * 6, [-1] * 6, 1.0),
        ([2, 3, 2, 4], [-1] * 4, 1.0),
        ([2, 3, 2, 4], [-1, 2, -1, -1], 1.0),
        ([2, 3, 2, 4], [-1] * 4, 2.0),
        ([2, 1, 3], [-1] * 3, 1.0),
    ],
)
def test_samples_follow_the_enumerated_distribution(name, num_values, given, temperature):
    target, given = PairwiseTarget(num_values, scale=0.4), torch.tensor(given)
    labels, _ = LABEL_SAMPLERS[name](
        target.log_prob, given.expand(8000, -1), num_values, num_steps=STEPS[name], temperature=temperature,
        generator=seeded(),
    )  # fmt: skip
    assert goodness_of_fit(target.cells(labels), target.probabilities(temperature, given)) > FALSE_ALARM


@pytest.mark.parametrize("proposal_temperature, temperature", [(2.0, 1.0), (1.0, 1.0), (2.0, 1.5)])
def test_gibbs_with_gradients_is_in_detailed_balance(proposal_temperature, temperature):
    """From exact draws, moves from a to b are as many as from b to a: a chi-square over all pairs, in one step."""
    target = PairwiseTarget([2, 3, 2], scale=0.8)
    probabilities = target.probabilities(temperature)
    first = torch.multinomial(probabilities, 100_000, replacement=True, generator=seeded(1))
    last, _ = gibbs_with_gradients(
        target.log_prob, torch.full((100_000, 3), -1), target.num_values, num_steps=1, temperature=temperature,
        proposal_temperature=proposal_temperature, start=target.vectors[first], generator=seeded(),
    )  # fmt: skip
    size = len(probabilities)
    moves = torch.bincount(first * size + target.cells(last), minlength=size**2).view(size, size).double()
    both = (moves + moves.T).triu(1)
    tested = both > 20
    statistic = ((moves - moves.T) ** 2)[tested].div(both[tested]).sum()
    assert tested.sum() > 10 and chi2(tested.sum().item()).sf(statistic.item()) > FALSE_ALARM
    changed = (target.vectors[:, None] != target.vectors).sum(-1)
    assert moves[changed > 1].sum() == 0


def test_gibbs_with_gradients_accepts_by_both_proposals():
    """Acceptance of a step on one label: p(b) q(b to a) / (p(a) q(a to b)), worked out from the definition."""
    weight = torch.tensor([0.3, -0.5, 1.1])

    def log_prob(one_hot):
        score = (one_hot[:, 0] * weight).sum(1)
        return score + 0.5 * score**2

    def log_proposal(a, b):
        gradient = weight * (1 + weight[a])
        others = [v for v in range(3) if v != a]
        return ((gradient - gradient[a]) / 2)[b] - ((gradient - gradient[a]) / 2)[others].logsumexp(0)

    start = torch.arange(3).repeat(100)[:, None]
    value = weight + 0.5 * weight**2
    seen = set()
    for seed in range(5):
        last, info = gibbs_with_gradients(
            log_prob, torch.full_like(start, -1), [3], num_steps=1, start=start, generator=seeded(seed)
        )
        for a, b, acceptance in zip(start[:, 0].tolist(), last[:, 0].tolist(), info.acceptance[0].tolist()):
            if a != b:
                ratio = (value[b] - value[a] + log_proposal(b, a) - log_proposal(a, b)).exp().item()
                assert acceptance == pytest.approx(min(1.0, ratio), abs=1e-5)
                seen.add((a, b))
    assert len(seen) == 6


@pytest.mark.parametrize("name", LABEL_SAMPLERS)
def test_each_row_has_its_own_free_labels(name):
    """A row without free labels stays, one without observed ones moves, whatever is beside it."""
    target = PairwiseTarget([2, 3, 2])
    labels = torch.tensor([[1, 2, 0], [-1, -1, -1], [1, -1, 0]]).repeat(200, 1)
    last, info = LABEL_SAMPLERS[name](target.log_prob, labels, target.num_values, num_steps=20, generator=seeded())
    assert (last[labels >= 0] == labels[labels >= 0]).all()
    assert all(len(last[1::3, k].unique()) == v for k, v in enumerate(target.num_values))
    assert len(last[2::3, 1].unique()) == 3 and info.energy.isfinite().all()


def test_gibbs_asks_for_all_values_of_a_label_at_once():
    """Rows v * B + b belong to chain b: a log probability may depend on the chain."""
    bias = torch.tensor([[8.0, 0.0, 0.0], [0.0, 8.0, 0.0], [0.0, 0.0, 8.0]])  # chain b wants value b
    sizes = []

    def log_prob(one_hot):
        sizes.append(len(one_hot))
        return (one_hot.view(-1, 3, 2, 3) * bias[:, None]).sum((2, 3)).flatten()

    labels, _ = gibbs(log_prob, torch.full((3, 2), -1), [3, 3], num_steps=2, generator=seeded())
    assert labels.tolist() == [[0, 0], [1, 1], [2, 2]] and sizes == [3, 9, 9, 9, 9]


def test_start_and_one_hot():
    labels = torch.tensor([[-1, 2]]).repeat(9_000, 1)
    start = start_labels(labels, [3, 4], generator=seeded())
    assert (start[:, 1] == 2).all() and goodness_of_fit(start[:, 0], torch.ones(3)) > FALSE_ALARM
    assert start_labels(labels[:1], [3, 4], torch.tensor([[1, 1]])).tolist() == [[1, 2]]
    assert one_hot(torch.tensor([[1, -1]]), [2, 3]).tolist() == [[[0, 1, 0], [0, 0, 0]]]
