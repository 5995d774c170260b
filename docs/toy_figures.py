"""The figures of toy.py."""

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from toy_joint import COLUMNS, CORNER, HELD_OUT, MEANS, PAIRS, ROWS, SIDE, SIGMA, components, inside

from jem_hf.plots import BLUE, GREY, INK, LIGHT_BLUE, PALE, RED

DENSITY = LinearSegmentedColormap.from_list("density", ["white", LIGHT_BLUE, BLUE, "#16324f"])
COLOURS = {"product": BLUE, "pairwise": "#c05a66", "dot": "#4f9d69", "mlp": "#d8973c", "product, mixed": INK}
RIGHT, TOP = PAIRS[:, 0] == 2, PAIRS[:, 1] == 2


def panels(num_rows: int, num_columns: int, size: tuple[float, float]) -> tuple[Figure, list]:
    """A figure and its axes (num_rows, num_columns)."""
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def planes(num_rows: int, num_columns: int, size: tuple[float, float]) -> tuple[Figure, list]:
    """The same, every panel the square [-1, 1]^2."""
    figure, axes = panels(num_rows, num_columns, size)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axis.spines[:].set_color(GREY)
    return figure, axes


def draw_map(axis, values: torch.Tensor, highest: float) -> None:
    """Values (N,) on the grid, white for 0."""
    settings = dict(
        cmap=DENSITY, vmin=0, vmax=highest, origin="lower", extent=(-1, 1, -1, 1), interpolation="bilinear"
    )
    axis.imshow(values.view(SIDE, SIDE), **settings)


def draw_circle(axis, pair: int, colour: str) -> None:
    """Two standard deviations about the mean of a pair."""
    angle = torch.linspace(0, 2 * torch.pi, 100)
    axis.plot(*(MEANS[pair][:, None] + 2 * SIGMA * torch.stack([angle.cos(), angle.sin()])), color=colour, linewidth=1)


def head_line(axis, text: str, below: str = "", colour: str = GREY) -> None:
    """A title, and a smaller line beneath it."""
    axis.set_title(f"{text}\n" if below else text, color=INK, fontsize=11, fontweight="bold")
    axis.text(0.5, 1.03, below, color=colour, fontsize=9.5, ha="center", transform=axis.transAxes)


def side_line(axis, text: str) -> None:
    axis.set_ylabel(text, color=INK, fontsize=10.5)


def name_of(pair: int) -> str:
    return f"{COLUMNS[PAIRS[pair, 0]]}, {ROWS[PAIRS[pair, 1]]}"


def draw_densities(results: dict[str, dict], exact: torch.Tensor, path: Path) -> None:
    """Exact and learned: p(x), p(x | right), and p(x | right, top), the exact one being the Gaussian of that pair."""

    def rows(log_joint, given_pair):
        return [log_joint.logsumexp(0), log_joint[RIGHT].logsumexp(0).log_softmax(0), given_pair]

    columns = {"exact": rows(exact, components()[CORNER])}
    for name, each in results.items():
        columns[name] = rows(each["log_joint"], each["log_joint"][CORNER].log_softmax(0))
    figure, axes = planes(3, len(columns), (1.75 * len(columns) + 0.4, 6.2))
    for column, (name, densities) in zip(axes.T, columns.items()):
        for axis, log_density, reference in zip(column, densities, columns["exact"]):
            draw_map(axis, log_density.exp(), reference.exp().max())
        draw_circle(column[2], CORNER, RED)
        head_line(column[0], name, f"KL {results[name]['kl']:.3f}" if name in results else "what is to be learnt")
    for axis, text in zip(axes[:, 0], ("p(x)", "p(x | right)", "p(x | right, top)\nheld out")):
        side_line(axis, text)
    figure.savefig(path, dpi=150)


def draw_samples(results: dict[str, dict], path: Path) -> None:
    """Samples for two pairs that are seen and the two that are held out, these also with guidance."""
    columns = list(next(iter(results.values()))["points"])
    figure, axes = planes(len(results), len(columns), (1.7 * len(columns) + 0.4, 1.7 * len(results) + 0.5))
    for row, (name, each) in zip(axes, results.items()):
        side_line(row[0], name)
        for axis, (pair, guidance) in zip(row, columns):
            for other in range(9):
                if not HELD_OUT[other]:
                    draw_circle(axis, other, PALE)
            draw_circle(axis, pair, RED if HELD_OUT[pair] else GREY)
            points = each["points"][pair, guidance]
            axis.scatter(*points.T, s=3, color=BLUE, alpha=0.5, linewidths=0, zorder=3)
            share = inside(points, pair).float().mean()
            axis.text(0.04, 0.04, f"{share:.2f}", color=INK, fontsize=9.5, transform=axis.transAxes, zorder=4)
    for axis, (pair, guidance) in zip(axes[0], columns):
        held_out = HELD_OUT[pair]
        guided = f", g = {guidance}" if guidance > 1 else ""
        head_line(axis, name_of(pair), ("held out" if held_out else "seen") + guided, RED if held_out else GREY)
    figure.savefig(path, dpi=150)


def draw_predictions(results: dict[str, dict], exact: torch.Tensor, path: Path) -> None:
    """p(right | x), and p(right | x, top) of one who knows the row."""
    columns = {"exact": exact} | {name: each["log_joint"] for name, each in results.items()}
    figure, axes = planes(2, len(columns), (1.75 * len(columns) + 1, 3.9))
    for column, (name, log_joint) in zip(axes.T, columns.items()):
        given_top = log_joint[RIGHT & TOP][0] - log_joint[TOP].logsumexp(0)
        draw_map(column[0], (log_joint[RIGHT].logsumexp(0) - log_joint.logsumexp(0)).exp(), 1)
        draw_map(column[1], given_top.exp(), 1)
        head_line(column[0], name)
    for axis, text in zip(axes[:, 0], ("p(right | x)", "p(right | x, top)")):
        side_line(axis, text)
    bar = figure.colorbar(axes[0, -1].images[0], ax=axes[:, -1], shrink=0.6, ticks=(0, 0.5, 1))
    bar.outline.set_color(GREY)
    figure.savefig(path, dpi=150)


def draw_guidance(results: dict[str, dict], path: Path) -> None:
    """Mass in the right place against the guidance scale."""
    figure, (axes,) = panels(1, 3, (9.5, 3.4))
    masks = {"the other seven": ~HELD_OUT, "middle, middle": PAIRS.eq(1).all(1), "right, top": RIGHT & TOP}
    for axis, (text, mask) in zip(axes, masks.items()):
        for name, each in results.items():
            scales = list(each["share"])
            shares = [each["share"][g][mask].mean() for g in scales]
            dashes = (0, (4, 2)) if name == "product, mixed" else "-"
            axis.plot(scales, shares, marker="o", markersize=4, color=COLOURS[name], linestyle=dashes, label=name)
        axis.set_xscale("log", base=2)
        axis.set(ylim=(0, 1.03), xticks=scales, xticklabels=scales)
        axis.set_xlabel("guidance scale g", color=INK)
        axis.grid(axis="y", color=PALE)
        axis.spines[["top", "right"]].set_visible(False)
        held_out = HELD_OUT[mask].any()
        head_line(axis, text, "held out" if held_out else "seen", RED if held_out else GREY)
    axes[0].set_ylabel("mass in the right place", color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=INK)
    figure.savefig(path, dpi=150)


def draw_warm_up(learned: torch.Tensor, warm: torch.Tensor, exact: torch.Tensor, points: torch.Tensor, path: Path):
    """p(x): exact, by contrastive divergence, by the warm-up, and where gradient flow on the last one ends."""
    figure, (axes,) = planes(1, 4, (9, 2.75))
    densities = {"exact": exact, "contrastive divergence": learned, "warm-up": warm}
    for axis, (name, log_joint) in zip(axes, densities.items()):
        density = log_joint.logsumexp(0).exp()
        draw_map(axis, density, density.max())
        head_line(axis, name, "p(x)")
    axes[3].scatter(*points.T, s=3, color=BLUE, alpha=0.5, linewidths=0)
    head_line(axes[3], "warm-up", "gradient flow from noise")
    figure.savefig(path, dpi=150)
