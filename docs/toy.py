"""
Every head learns a joint density in the plane that is known exactly: prints tables, draws figures.

python docs/toy.py [--output docs/figures] [--steps 2000] [--seed 0]
"""

import argparse
import math
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from toy_figures import draw_densities, draw_guidance, draw_predictions, draw_samples, draw_warm_up
from toy_joint import (
    CENTRE,
    CORNER,
    GRID,
    HELD_OUT,
    PAIRS,
    SIDE,
    components,
    divergence,
    draw,
    exact_log_joint,
    guided,
    independent,
    mass_inside,
    normalised,
    product_floor,
)

from jem_hf.evaluation.likelihood import adapt_step_sizes, annealed_importance_sampling, uniform_images
from jem_hf.metrics.prediction import prediction_metrics
from jem_hf.models.heads_jem import HEADS, cross_entropy
from jem_hf.models.sampling_jem import flow_steps, run_chain
from jem_hf.training.objectives import contrastive_divergence, equilibrium_matching

MODELS = {name: (name, 2) for name in HEADS} | {"product, mixed": ("product", 1)}  # head and parts of the backbone
BATCH_SIZE = 256
STEP_SIZE = 0.002
CHAIN = dict(num_steps=10, step_size=STEP_SIZE, bounds=(-1, 1), gibbs_every=5)
GUIDANCE = (1, 2, 4, 8)
SHOWN = [(0, 1), (5, 1), (CENTRE, 1), (CENTRE, 4), (CORNER, 1), (CORNER, 4)]  # pairs and guidance of the samples


class Energy(nn.Module):
    """
    A joint energy of points x (B, 2, 1, 1): a function from x to the distribution of its labels.

    Args:
        head: One of `HEADS`.
        num_parts: 2 for a network of its own for each coordinate, 1 for one that mixes them.
    """

    def __init__(self, head: str, num_parts: int = 2, width: int = 128):
        super().__init__()
        size, hidden = 2 // num_parts, width // num_parts
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
            for _ in range(num_parts)
        )
        self.head = HEADS[head](width, [3, 3])

    def forward(self, x: torch.Tensor):
        coordinates = (3 * x.flatten(1)).chunk(len(self.parts), dim=1)
        features = torch.cat([part(each) for part, each in zip(self.parts, coordinates)], dim=1)
        return self.head.distribution(self.head(features))

    @torch.no_grad()
    def log_joint(self) -> torch.Tensor:
        """`log p(x, y)` (9, N) of every pair on the cells of the grid, normalised."""
        distribution = self(GRID[..., None, None])
        return normalised(torch.stack([distribution.log_joint(pair.expand(len(GRID), 2)) for pair in PAIRS]))


def train(energy: Energy, loss, num_steps: int) -> Energy:
    """Minimise `loss()` by Adam with a cosine schedule; returns the moving average of the weights."""
    average = AveragedModel(energy, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimiser = torch.optim.Adam(energy.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    for _ in range(num_steps):
        optimiser.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(energy.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(energy)
    return average.module.requires_grad_(False)


def train_by_contrastive_divergence(energy: Energy, num_steps: int, generator: torch.Generator) -> Energy:
    """Maximum likelihood by persistent chains: Gibbs on the labels, Langevin with its full noise on the points."""
    chains = torch.rand(BATCH_SIZE, 2, 1, 1, generator=generator) * 2 - 1
    free = torch.full((BATCH_SIZE, 2), -1)

    def loss():
        nonlocal chains
        x, labels = draw(BATCH_SIZE, generator)
        energy.requires_grad_(False)
        chains, drawn = run_chain("unadjusted_langevin", energy, chains, free, generator=generator, **CHAIN)
        energy.requires_grad_(True)
        return contrastive_divergence(energy(x).log_joint(labels), energy(chains).log_joint(drawn))

    return train(energy, loss, num_steps)


def warm_up(energy: Energy, num_steps: int, generator: torch.Generator) -> Energy:
    """Equilibrium Matching with a little cross-entropy and no chains, as the recipes of the zoo have it."""

    def loss():
        x, labels = draw(BATCH_SIZE // 2, generator)
        matching = equilibrium_matching(energy, x, labels, generator)
        return matching + 0.1 * cross_entropy(energy(x).conditional_logits(labels), labels)

    return train(energy, loss, num_steps)


def samples(
    energy: Energy, pair: int, guidance_scale: float, num: int, generator: torch.Generator, num_steps: int = 500
) -> torch.Tensor:
    """Points (num, 2) of `p(x) p(y | x)^g` for a pair y, by MALA from uniform noise."""
    x = torch.rand(num, 2, 1, 1, generator=generator) * 2 - 1
    settings = dict(num_steps=num_steps, step_size=2 * STEP_SIZE, bounds=(-1, 1), guidance_scale=guidance_scale)
    return run_chain("mala", energy, x, PAIRS[pair].expand(num, 2), generator=generator, **settings)[0].flatten(1)


def flow(energy: Energy, num: int, generator: torch.Generator) -> torch.Tensor:
    """Points (num, 2) by gradient flow from normal noise, no labels asked for."""
    x = torch.randn(num, 2, 1, 1, generator=generator)
    return run_chain("flow", energy, x, torch.full((num, 2), -1), num_steps=48, step_size=flow_steps(48))[0].flatten(1)


def log_z(energy: Energy, num_temperatures: int, generator: torch.Generator) -> tuple[float, float, float]:
    """`log Z` by adding up the grid, by annealed importance sampling from noise, and back from the model's samples."""

    def log_p(x):
        return energy(x).log_marginal()

    with torch.no_grad():
        density = log_p(GRID[..., None, None])
    exact = (density.logsumexp(0) + math.log(4 / len(GRID))).item()
    cells = torch.multinomial(density.softmax(0), 500, replacement=True, generator=generator)
    within = (torch.rand(500, 2, generator=generator) - 0.5) * 2 / SIDE
    steps = adapt_step_sizes(log_p, (500, 2, 1, 1), num_temperatures, generator)
    forward = annealed_importance_sampling(log_p, uniform_images((500, 2, 1, 1), generator), steps, generator)
    at_samples = (GRID[cells] + within)[..., None, None]
    back = annealed_importance_sampling(log_p, at_samples, steps, generator, reverse=True)
    return exact, forward.estimate, back.estimate


def density_table(energies: dict[str, Energy], exact: torch.Tensor, num_temperatures: int, seed: int) -> str:
    """What contrastive divergence does to the density of a warm-up, as Markdown."""
    lines = ["| | KL of p(x) | log Z, exact | from noise | back from the model |", "|---|---:|---:|---:|---:|"]
    for name, energy in energies.items():
        kl = divergence(exact.logsumexp(0), energy.log_joint().logsumexp(0))
        numbers = log_z(energy, num_temperatures, torch.Generator().manual_seed(seed))
        lines.append(f"| {name} | {kl:.3f} | {' | '.join(f'{number:.3f}' for number in numbers)} |")
    return "\n".join(lines)


def evaluate(energy: Energy, exact: torch.Tensor, chains: tuple[int, int], generator: torch.Generator) -> dict:
    """What the tables and the figures show of a model; `chains` are their number a request, and their steps."""
    num_chains, num_steps = chains
    learned = energy.log_joint()
    x, labels = draw(5000, generator)
    probabilities = energy(x).marginal_logits()[0].softmax(-1)
    return {
        "log_joint": learned,
        "points": {shown: samples(energy, *shown, num_chains, generator, num_steps) for shown in SHOWN},
        "share": {g: mass_inside(guided(learned, g)) for g in GUIDANCE},
        "kl": divergence(exact, learned),
        "kl_marginal": divergence(exact.logsumexp(0), learned.logsumexp(0)),
        "ece": prediction_metrics(probabilities, labels, ["column", "row"])["ece"],
        "unasked": learned[HELD_OUT].exp().sum().item(),
    }


def quality_table(results: dict[str, dict]) -> str:
    """How near the density is, as Markdown."""
    lines = ["| | KL of p(x, y) | KL of p(x) | ECE | p(held-out pairs) |", "|---|---:|---:|---:|---:|"]
    for name, each in results.items():
        numbers = f"{each['kl']:.3f} | {each['kl_marginal']:.3f} | {each['ece']:.4f} | {each['unasked']:.4f}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def request_table(results: dict[str, dict]) -> str:
    """The mass of `p(x) p(y | x)^g` in the right place, without guidance and with it, as Markdown."""
    lines = [
        "| | seen | (middle, middle) | (right, top) | seen, g = 4 | (middle, middle), g = 4 | (right, top), g = 4 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, each in results.items():
        shares = [f"{s:.2f}" for g in (1, 4) for s in wanted(each["share"][g])]
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(lines)


def wanted(share: torch.Tensor) -> list[float]:
    """Of nine shares the mean over the pairs that are seen, and the two that are held out."""
    return [share[~HELD_OUT].mean().item(), share[CENTRE].item(), share[CORNER].item()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures")
    parser.add_argument("--steps", type=int, default=2000, help="of training, each model")
    parser.add_argument("--chains", type=int, default=200, help="samples in each panel")
    parser.add_argument("--chain-steps", type=int, default=500, help="of each sample")
    parser.add_argument("--temperatures", type=int, default=500, help="of annealed importance sampling")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    def prepared(head, num_parts):
        torch.manual_seed(args.seed)
        return Energy(head, num_parts), args.steps, torch.Generator().manual_seed(args.seed)

    exact, results, energies = exact_log_joint(), {}, {}
    for name, settings in MODELS.items():
        energy = energies[name] = train_by_contrastive_divergence(*prepared(*settings))
        generator = torch.Generator().manual_seed(args.seed + 1)
        results[name] = evaluate(energy, exact, (args.chains, args.chain_steps), generator)
        print(f"trained: {name}", flush=True)
    warm = warm_up(*prepared("product", 2))
    _, num_steps, generator = prepared("product", 2)
    continued = train_by_contrastive_divergence(deepcopy(warm).requires_grad_(True), num_steps // 4, generator)
    flowed = flow(warm, 1000, torch.Generator().manual_seed(args.seed))

    print(f"\n{quality_table(results)}\n\n{request_table(results)}\n")
    print(f"Mass of a pair's own Gaussian in the right place: {mass_inside(components())[0]:.3f}")
    print(f"Nearest product of classifiers, KL of p(x, y): {product_floor(exact):.4f}")
    print(f"Nearest product of classifiers, p(held-out pairs): {independent(exact)[HELD_OUT].exp().sum():.4f}")
    print(f"Warm-up, KL of p(x): {divergence(exact.logsumexp(0), warm.log_joint().logsumexp(0)):.2f}")
    trained = {"warm-up": warm, "warm-up, then a quarter as many steps of contrastive divergence": continued}
    trained["contrastive divergence"] = energies["product"]
    print(f"\n{density_table(trained, exact, args.temperatures, args.seed)}")
    args.output.mkdir(parents=True, exist_ok=True)
    draw_densities(results, exact, args.output / "densities.png")
    draw_samples(results, args.output / "samples.png")
    draw_predictions(results, exact, args.output / "predictions.png")
    draw_guidance(results, args.output / "guidance.png")
    draw_warm_up(results["product"]["log_joint"], warm.log_joint(), exact, flowed, args.output / "warm_up.png")


if __name__ == "__main__":
    main()
