"""The figure of `run.py`."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

COLOURS = {"jem_hf": "tab:blue", "torchebm": "tab:orange"}


def plot(results: list[dict], path: Path) -> None:
    """
    Each contender's time as a multiple of the first one's, the bare loop: median and quartiles, a row a setting.

    Chains on the left. What runs no network, such as the loading of data, is left out.
    """
    results = [result for result in results if "gflop" in result]
    parts = [[each for each in results if (each["workload"] == "chain") is is_chain] for is_chain in (True, False)]
    parts = [part for part in parts if part]
    if not parts:
        return
    figure = Figure(figsize=(8 * len(parts), 1.2 + 0.24 * max(map(len, parts))), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts):
        _rows(axes, part)
    figure.savefig(path, dpi=100)


def _rows(axes, results: list[dict]) -> None:
    for row, result in enumerate(results):
        _, *others = result["contenders"].items()
        for name, own in others:
            ratio, lower, upper = own["ratio"]
            axes.plot([lower, upper], [row, row], color=COLOURS[name])
            axes.plot(ratio, row, "o", color=COLOURS[name], markersize=4, label=name)
    axes.set_yticks(range(len(results)), [_label(result) for result in results], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time, bare loop = 1 (median and quartiles)", ylim=(len(results) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(axis="x", which="both", linewidth=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(*zip(*{label: (handle, label) for handle, label in zip(handles, labels)}.values()), fontsize=7)


def _label(result: dict) -> str:
    numbers = f"batch {result['batch_size']}, {result['image_size']} px, width {result['width']}"
    return f"{result['workload'].replace('_', ' ')}: {numbers}" + (", bfloat16" if result["bfloat16"] else "")
