"""Six figures of the numbers that evidence.py wrote: a mean over seeds, and a band from the least to the most."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def write_figures(reports: list[dict], folder: Path) -> None:
    """One PNG a trial, of the seeds that have it."""
    for name, plot in FIGURES.items():
        found = [report[name] for report in reports if name in report]
        if found:
            figure = plot(found)
            figure.savefig(folder / f"{name}.png", dpi=110)


def _panels(number: int) -> tuple[Figure, list]:
    figure = Figure(figsize=(3.6 * number, 3.2), layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _curve(axes, x: list, rows: list[list], label: str) -> None:
    """Values by seed (S, N) over x (N,)."""
    values = np.array(rows, dtype=float)
    (line,) = axes.plot(x, values.mean(0), marker=".", label=label)
    if len(values) > 1:
        axes.fill_between(x, values.min(0), values.max(0), alpha=0.2, color=line.get_color())


def _bars(axes, groups: dict[str, list[list]], labels: list[str]) -> None:
    """Bars of every group, values by seed (S, N), side by side at N places."""
    width = 0.8 / len(groups)
    for i, (name, rows) in enumerate(groups.items()):
        values = np.array(rows, dtype=float)
        places = np.arange(values.shape[1]) + width * (i - (len(groups) - 1) / 2)
        spread = [values.mean(0) - values.min(0), values.max(0) - values.mean(0)] if len(values) > 1 else None
        axes.bar(places, values.mean(0), width, yerr=spread, label=name)
    axes.set_xticks(range(len(labels)), [label.replace("_", " ") for label in labels], rotation=30, ha="right")


def _finish(figure: Figure, axes: list) -> Figure:
    for each in axes:
        each.grid(linewidth=0.3)
    axes[-1].legend(fontsize=7)
    return figure


def few_labels(found: list[dict]) -> Figure:
    figure, axes = _panels(4)
    panels = [(kind, metric) for kind in ("labels", "images") for metric in ("ap", "nll")]
    for each, (kind, metric) in zip(axes, panels):
        for name, by_share in found[0][kind].items():
            x = [float(share) for share in by_share]
            _curve(each, x, [[row[metric] for row in seed[kind][name].values()] for seed in found], name)
        each.set(xscale="log", xlabel=f"share of {kind} given", ylabel=metric)
    return _finish(figure, axes)


def shift(found: list[dict]) -> Figure:
    names = list(found[0]["strengths"])
    kinds = list(found[0]["strengths"][names[0]])
    figure = Figure(figsize=(3 * len(kinds), 6), layout="constrained")
    grid = figure.subplots(2, len(kinds), sharey="row")
    for row, metric in zip(grid, ("accuracy", "ece")):
        for each, kind in zip(row, kinds):
            for name in names:
                rows = [[strength[metric] for strength in seed["strengths"][name][kind]] for seed in found]
                _curve(each, range(len(rows[0])), rows, name)
            each.set(xlabel=f"{kind}, strength", ylabel=metric)
    return _finish(figure, list(grid.flat))


def outliers(found: list[dict]) -> Figure:
    figure, axes = _panels(2)
    for each, name in zip(axes, [name for name in ("joint", "classifier") if name in found[0]]):
        signals = found[0][name]
        kinds = list(next(iter(signals.values())))
        groups = {
            signal: [[seed[name][signal][kind]["auroc"] for kind in kinds] for seed in found] for signal in signals
        }
        _bars(each, groups, kinds)
        each.set(title=name, ylabel="AUROC", ylim=(0, 1.02))
    figure.set_figwidth(14)
    return _finish(figure, axes)


def _over_numbers(xlabel: str, ylabel: str, found: list[dict]) -> Figure:
    """A curve a contender, over the numbers by which its values stand."""
    figure, axes = _panels(1)
    for name, by_number in found[0].items():
        x = [int(number) for number in by_number]
        _curve(axes[0], x, [list(seed[name].values()) for seed in found], name)
    axes[0].set(xlabel=xlabel, ylabel=ylabel)
    return _finish(figure, axes)


def combinations(found: list[dict]) -> Figure:
    figure, axes = _panels(2)
    drawn = found[0]["drawn"]
    scales = list(drawn[next(iter(drawn))]["joint"])
    for scale in scales:
        rows = [[entry["joint"][scale] for entry in seed["drawn"].values()] for seed in found]
        _curve_points(axes[0], [entry["seen"] for entry in drawn.values()], rows, f"guidance {scale}")
    photographs = [[entry["photographs"] for entry in seed["drawn"].values()] for seed in found]
    _curve_points(axes[0], [entry["seen"] for entry in drawn.values()], photographs, "real images")
    axes[0].set(xscale="log", xlabel="images with the rarer attribute", ylabel="held-out pair drawn all right")
    axes[0].legend(fontsize=7)
    names = list(found[0]["recognised"])
    _bars(axes[1], {"held-out pair recognised": [[seed["recognised"][n] for n in names] for seed in found]}, names)
    return _finish(figure, axes)


def _curve_points(axes, x: list, rows: list[list], label: str) -> None:
    axes.plot(x, np.array(rows, dtype=float).mean(0), "o", markersize=4, label=label)


FIGURES: dict[str, Callable[[list[dict]], Figure]] = {
    "few_labels": few_labels,
    "shift": shift,
    "outliers": outliers,
    "known_labels": partial(_over_numbers, "labels known", "accuracy of the others"),
    "combinations": combinations,
    "attacks": partial(_over_numbers, "attack in 255ths, every pixel", "accuracy"),
}
