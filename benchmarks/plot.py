"""The figure of `run.py`."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

COLOURS = {"jem_hf": "tab:blue", "torchebm": "tab:orange"}


def plot(results: list[dict], path: Path) -> None:
    """
    Each contender's time as a multiple of the first one's, the bare loop: median and quartiles, a row a setting.

    What runs no network, such as the loading of data, is left out.
    """
    results = [result for result in results if "gflop" in result]
    if not results:
        return
    figure = Figure(figsize=(8, 1.2 + 0.24 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    for row, result in enumerate(results):
        _, *others = result["contenders"].items()
        for name, own in others:
            ratio, lower, upper = own["ratio"]
            colour = COLOURS.get(name, "tab:green")
            axes.plot([lower, upper], [row, row], color=colour)
            axes.plot(ratio, row, "o", color=colour, markersize=4, label=name)
    axes.set_yticks(range(len(results)), [_label(result) for result in results], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time, bare loop = 1 (median and quartiles)", ylim=(len(results) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(axis="x", which="both", linewidth=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(*zip(*{label: (handle, label) for handle, label in zip(handles, labels)}.values()), fontsize=7)
    figure.savefig(path, dpi=120)


def _label(result: dict) -> str:
    numbers = f"batch {result['batch_size']}, {result['image_size']} px, width {result['width']}"
    return f"{result['workload'].replace('_', ' ')}: {numbers}" + (", bfloat16" if result["bfloat16"] else "")
