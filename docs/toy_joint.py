"""A joint density of points and labels in the plane that is known exactly, and measures of how near a model comes."""

from itertools import product

import torch

# A label for the column and one for the row, three values each; every pair has one Gaussian of a 3x3 grid.
COLUMNS, ROWS = ("left", "middle", "right"), ("bottom", "middle", "top")
PAIRS = torch.tensor(list(product(range(3), range(3))))  # (9, 2)
MEANS = 0.5 * (PAIRS - 1.0)
SIGMA = 0.125
CENTRE, CORNER = 4, 8  # (middle, middle) and (right, top) are left out of the data
HELD_OUT = torch.zeros(9, dtype=torch.bool).index_fill(0, torch.tensor([CENTRE, CORNER]), True)

SIDE = 100  # densities are compared on SIDE x SIDE cells of [-1, 1]^2
TICKS = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
GRID = torch.cartesian_prod(TICKS, TICKS).flip(1)  # (N, 2); the first coordinate runs fastest, as in a picture


def draw(num: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (num, 2, 1, 1), images of two channels and one pixel, and labels (num, 2) of the pairs that are seen."""
    seen = (~HELD_OUT).nonzero()[:, 0]
    pair = seen[torch.randint(len(seen), (num,), generator=generator)]
    x = MEANS[pair] + SIGMA * torch.randn(num, 2, generator=generator)
    return x.clamp(-1, 1)[..., None, None], PAIRS[pair]


def components() -> torch.Tensor:
    """`log p(x | y)` (9, N) of every pair on the cells of the grid."""
    return (-(GRID - MEANS[:, None]).square().sum(-1) / (2 * SIGMA**2)).log_softmax(1)


def exact_log_joint() -> torch.Tensor:
    """`log p(x, y)` (9, N) of every pair on the cells of the grid, -inf for the pairs that are held out."""
    return normalised(components().masked_fill(HELD_OUT[:, None], -torch.inf))


def normalised(log_density: torch.Tensor) -> torch.Tensor:
    """The same density, summing to one."""
    return log_density - log_density.flatten().logsumexp(0)


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """Kullback-Leibler divergence KL(p || q) in nats, of tables of one shape."""
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum().item()


def independent(log_joint: torch.Tensor) -> torch.Tensor:
    """`log p(x) p(column | x) p(row | x)` (9, N): of all products of classifiers the nearest to `log p(x, y)`."""
    table = log_joint.unflatten(0, (3, 3))
    return (table.logsumexp(1)[:, None] + table.logsumexp(0)[None] - log_joint.logsumexp(0)).flatten(0, 1)


def product_floor(log_joint: torch.Tensor) -> float:
    """The least KL(p || q) for labels that q has independent given x: the mutual information I(column; row | x)."""
    return divergence(log_joint, independent(log_joint))


def guided(log_joint: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """For each pair the logarithm (9, N) of the density proportional to `p(x) p(y | x)^g`."""
    log_marginal = log_joint.logsumexp(0)
    return (log_marginal + guidance_scale * (log_joint - log_marginal)).log_softmax(1)


def inside(points: torch.Tensor, pair: int) -> torch.Tensor:
    """Whether points (M, 2) lie within two standard deviations of the mean of a pair, (M,)."""
    return (points - MEANS[pair]).norm(dim=-1) < 2 * SIGMA


def mass_inside(log_density: torch.Tensor) -> torch.Tensor:
    """The share (9,) of each of nine densities (9, N) that lies within two standard deviations of its pair's mean."""
    return torch.stack([each[inside(GRID, pair)].exp().sum() for pair, each in enumerate(log_density)])
