import pytest
import torch

from jem_hf.metrics.distances import frechet_distance, kernel_distance, mean_pairwise_distances


def with_moments(mean, covariance, num=40):
    """Points whose mean and (N - 1) covariance are exactly these."""
    points = torch.randn(num, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points -= points.mean(0)
    whitened = points @ torch.linalg.inv(torch.linalg.cholesky(points.T.cov())).T
    return whitened @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_in_closed_form():
    mean, other_mean = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    first = with_moments(mean, torch.diag(torch.tensor([1.0, 4.0, 9.0])).double())
    second = with_moments(other_mean, torch.diag(torch.tensor([4.0, 1.0, 9.0])).double(), num=60)
    # |mean - mean'|^2 + sum (s - s')^2 for covariances that commute
    assert frechet_distance(first, second) == pytest.approx(1 + 9 + 1 + 1 + 0)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())[0]
    assert frechet_distance(first @ rotation, second @ rotation) == pytest.approx(12)


def test_kernel_distance_equals_the_sum_over_pairs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator).double()
    y = torch.randn(5, 4, generator=generator).double() + 1

    def kernel(a, b):
        return ((a @ b) / 4 + 1).item() ** 3

    different = [(i, j) for i in range(5) for j in range(5) if i != j]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in different) / 20
    between = sum(kernel(a, b) for a in x for b in y) / 25
    assert kernel_distance(x, y) == pytest.approx(within - 2 * between)


def test_kernel_distance_leaves_the_global_generator_alone():
    x = torch.randn(30, 4).double()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert kernel_distance(x, x[:20] + 1) == kernel_distance(x, x[:20] + 1) > 0
    assert (torch.rand(4) == expected).all()


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_one_image_has_no_distance(distance):
    assert distance(torch.zeros(1, 3), torch.zeros(5, 3)) is None
    assert distance(torch.zeros(5, 3), torch.zeros(1, 3)) is None
    assert distance(torch.zeros(2, 3), torch.zeros(2, 3)) == pytest.approx(0, abs=1e-6)


def test_mean_pairwise_distances_by_hand():
    points = torch.tensor([[0.0, 0], [3, 4], [0, 8], [7, 7], [1, 1], [1, 2]])
    groups = torch.tensor([5, 5, 5, 2, 9, 9])
    assert mean_pairwise_distances(points, groups) == pytest.approx({5: (5 + 5 + 8) / 3, 9: 1})
