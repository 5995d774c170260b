"""The example of docs/joint_energies.md: its exact side by hand, its learning and its command at tiny size."""

import subprocess
import sys
from math import exp, log, pi
from pathlib import Path

import pytest
import torch
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))

import toy  # noqa: E402
import toy_joint  # noqa: E402

from jem_hf.models.label_distributions_jem import ProductDistribution  # noqa: E402


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cells(density):
    """A density of each pair (9,) and one point, as `log p(x, y)` (9, 1)."""
    return torch.tensor(density, dtype=torch.float64).log()[:, None]


def test_exact_densities_sum_to_one_and_leave_out_two_pairs():
    log_joint = toy_joint.exact_log_joint()
    mass = log_joint.exp().sum(1)
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    assert mass[toy_joint.HELD_OUT].tolist() == [0, 0]
    assert mass[~toy_joint.HELD_OUT].tolist() == pytest.approx([1 / 7] * 7, rel=1e-3)
    assert toy_joint.components().exp().sum(1).tolist() == pytest.approx([1] * 9, rel=1e-4)


def test_the_grid_places_each_pair_where_its_labels_say():
    best = toy_joint.GRID[toy_joint.components().argmax(1)]
    assert (best - toy_joint.MEANS).abs().max() <= 1 / toy_joint.SIDE + 1e-6
    assert toy_joint.MEANS[toy_joint.CORNER].tolist() == [0.5, 0.5]
    assert toy_joint.MEANS[toy_joint.PAIRS.tolist().index([0, 2])].tolist() == [-0.5, 0.5]  # left, top


def test_data_have_the_moments_of_the_exact_density():
    x, labels = toy_joint.draw(20_000, generator())
    density = toy_joint.exact_log_joint().logsumexp(0).exp()
    mean = density @ toy_joint.GRID
    assert torch.allclose(x.flatten(1).mean(0), mean, atol=0.015)  # five standard errors
    pair = 3 * labels[:, 0] + labels[:, 1]
    assert set(pair.tolist()) == set((~toy_joint.HELD_OUT).nonzero()[:, 0].tolist())
    assert (x.flatten(1) - toy_joint.MEANS[pair]).std().item() == pytest.approx(toy_joint.SIGMA, rel=0.02)


def test_divergence_by_hand():
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
    assert toy_joint.divergence(p, p) == 0
    assert toy_joint.divergence(p, q) == pytest.approx(0.5 * log(2))
    assert toy_joint.divergence(q, p) == torch.inf


def test_product_floor_is_the_mutual_information():
    independent = torch.outer(torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.1, 0.6, 0.3])).flatten().tolist()
    assert toy_joint.product_floor(cells(independent)) == pytest.approx(0, abs=1e-12)
    either = [0.5, 0, 0, 0, 0.5, 0, 0, 0, 0]  # (0, 0) or (1, 1): one bit
    assert toy_joint.product_floor(cells(either)) == pytest.approx(log(2))
    two_points = torch.cat([cells(independent), cells(either)], dim=1) - log(2)
    assert toy_joint.product_floor(two_points) == pytest.approx(log(2) / 2)


def test_the_nearest_product_gives_mass_to_pairs_never_seen():
    either = cells([0.5, 0, 0, 0, 0.5, 0, 0, 0, 0])
    nearest = toy_joint.independent(either).exp().flatten().tolist()
    assert nearest == pytest.approx([0.25, 0.25, 0, 0.25, 0.25, 0, 0, 0, 0])


def test_guidance_multiplies_the_posterior():
    joint = torch.zeros(9, 2, dtype=torch.float64)
    joint[0], joint[1] = torch.tensor([0.4, 0.1]), torch.tensor([0.1, 0.4 / 3])  # p(x): .5 and .2333
    for scale in (1, 3):
        here, there = 0.5 * 0.8**scale, (0.7 / 3) * (0.3 / 0.7) ** scale
        assert toy_joint.guided(joint.log(), scale)[0, 0].exp().item() == pytest.approx(here / (here + there))


def test_a_pairs_own_gaussian_has_the_mass_of_two_standard_deviations():
    assert toy_joint.mass_inside(toy_joint.components()).tolist() == pytest.approx([1 - exp(-2)] * 9, abs=5e-3)
    corner = toy_joint.MEANS[toy_joint.CORNER]
    points = corner + torch.tensor([[0.0, 0.0], [0.24, 0.0], [0.0, -0.26]])
    assert toy_joint.inside(points, toy_joint.CORNER).tolist() == [True, True, False]
    assert not toy_joint.inside(points, 0).any()


@pytest.mark.parametrize("name", toy.MODELS)
def test_the_density_on_the_grid_is_the_energy_normalised(name):
    torch.manual_seed(0)
    energy = toy.Energy(*toy.MODELS[name])
    log_joint = energy.log_joint()
    assert log_joint.exp().sum().item() == pytest.approx(1, abs=1e-4)
    x = torch.tensor([[toy_joint.TICKS[7], toy_joint.TICKS[70]]]).view(1, 2, 1, 1)
    scores = torch.stack([energy(x).log_joint(pair[None]) for pair in toy_joint.PAIRS])[:, 0]
    assert torch.allclose(log_joint[:, 70 * toy_joint.SIDE + 7].diff(), scores.diff(), atol=1e-4)


def test_only_the_mixed_backbone_lets_coordinates_interact():
    def mixed_difference(name):
        torch.manual_seed(0)
        energy = toy.Energy(*toy.MODELS[name])
        x = torch.tensor([[-0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [0.5, -0.5]])[..., None, None]
        log_joint = energy(x).log_joint(torch.tensor([[0, 1]] * 4))
        return (log_joint[:2].sum() - log_joint[2:].sum()).abs().item()

    assert mixed_difference("product") < 1e-6
    assert mixed_difference("product, mixed") > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("training, num_steps", [(toy.train_by_contrastive_divergence, 40), (toy.warm_up, 80)])
def test_a_short_training_comes_nearer(training, num_steps):
    torch.manual_seed(0)
    energy, exact = toy.Energy("product"), toy_joint.exact_log_joint()
    before = toy_joint.divergence(exact, energy.log_joint())
    after = toy_joint.divergence(exact, training(energy, num_steps, generator()).log_joint())
    assert after < before - 0.1


class Exact:
    """The exact components of every pair as an energy, held-out pairs included."""

    is_exact = True

    def __call__(self, x):
        distance = (x.flatten(1)[:, None] - toy_joint.MEANS).square().sum(-1)
        self.scores = (-distance / (2 * toy_joint.SIGMA**2)).unflatten(1, (3, 3))
        return self

    def log_joint(self, labels, weights=None):
        return self.scores[torch.arange(len(labels)), labels[:, 0], labels[:, 1]]


def test_samples_of_a_known_energy_are_in_the_right_place():
    for pair in (0, toy_joint.CORNER):
        points = toy.samples(Exact(), pair, 1, 500, generator())
        share = toy_joint.inside(points, pair).float().mean().item()
        assert share == pytest.approx(1 - exp(-2), abs=0.06)  # four standard errors


def test_log_z_of_a_gaussian():
    """`Z = 2 pi sigma^2`, by all three ways."""

    def gaussian(x):
        return ProductDistribution((-x.flatten(1).square().sum(1) / (2 * 0.2**2))[:, None, None])

    for found in toy.log_z(gaussian, 100, generator()):
        assert found == pytest.approx(log(2 * pi * 0.2**2), abs=0.06)


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_figures(tmp_path):
    tiny = "--steps 4 --chains 5 --chain-steps 3 --temperatures 3".split()
    command = [sys.executable, DOCS / "toy.py", *tiny, "--output", tmp_path / "figures"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [line for line in run.stdout.splitlines() if line.startswith("| product, mixed |")]
    assert [row.count("|") for row in rows] == [6, 8]
    assert run.stdout.count("| warm-up, then a quarter") == 1
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == ["densities.png", "guidance.png", "predictions.png", "samples.png", "warm_up.png"]
    for name in figures:
        with Image.open(tmp_path / "figures" / name) as picture:
            assert len(set(picture.convert("L").get_flattened_data())) > 50
