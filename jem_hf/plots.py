"""Pictures of results: grids of images and reliability diagrams."""

import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

INK, GREY, PALE = "#22262b", "#8a9099", "#e4e7eb"
BLUE, LIGHT_BLUE, RED = "#2f6db3", "#9cc3ea", "#e38b96"


def image_grid(
    images: Sequence[Image.Image] | torch.Tensor,
    num_columns: int = 8,
    scale: int = 1,
    padding: int = 2,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> Image.Image:
    """
    Images in rows on white, each pixel enlarged to a square.

    Args:
        images: PIL images or tensors (C, H, W), all of one size; tensors are uint8 or floats in [-1, 1], C is 1 or 3.
        num_columns (`int`, *optional*, defaults to 8): Images in a full row.
        scale (`int`, *optional*, defaults to 1): Side of an enlarged pixel.
        padding (`int`, *optional*, defaults to 2): Pixels between images and around them.
        row_labels (`Sequence[str]`, *optional*): A text for each row, written left of it, wrapped at spaces.
        column_labels (`Sequence[str]`, *optional*): A text for each column, written above it, wrapped at spaces.

    Raises:
        ValueError: no images, sizes that differ, or a number of labels that is not that of the rows or columns.
    """
    tiles = [_pixels(image) for image in images]
    if not tiles:
        raise ValueError("there are no images to draw")
    sizes = sorted({(tile.shape[2], tile.shape[1]) for tile in tiles})
    if len(sizes) > 1:
        raise ValueError(f"images of one grid must have one size, not {sizes}")
    num_columns = min(num_columns, len(tiles))
    num_rows = -(-len(tiles) // num_columns)
    if row_labels is not None and len(row_labels) != num_rows:
        raise ValueError(f"{len(row_labels)} row labels for {num_rows} rows")
    if column_labels is not None and len(column_labels) != num_columns:
        raise ValueError(f"{len(column_labels)} column labels for {num_columns} columns")
    tiles = torch.stack(tiles).repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    grid = make_grid(tiles, num_columns, padding, pad_value=255)
    if len(tiles) == 1:  # of which make_grid leaves out the frame
        grid = F.pad(grid, [padding] * 4, value=255)
    grid = to_pil_image(grid)
    if column_labels:
        grid = _with_header(grid, column_labels, tiles.shape[-1] + padding)
    return _with_labels(grid, row_labels, num_rows, tiles.shape[-2] + padding) if row_labels else grid


def reliability_diagram(curves: Mapping[str, tuple[Mapping, float]], path: str | os.PathLike) -> None:
    """
    Write a PNG of accuracy against confidence with the share of the predictions beneath, one panel a model.

    All panels have the same axes, and accuracy the scale of confidence; more than three stand in two rows.

    Args:
        curves (`Mapping`): For each name the result of `reliability_curve` and the expected calibration error.
        path (`str`): File to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_rows = 1 if len(curves) <= 3 else 2
    num_columns = -(-len(curves) // num_rows)
    size = (3.3 * num_columns + 0.5, 4.5 * num_rows + 0.3)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * num_rows, num_columns, squeeze=False, height_ratios=(1, 0.28) * num_rows)
    upper_axes, lower_axes = axes[::2].flatten(), axes[1::2].flatten()
    lower = min(_lowest(curve) for curve, _ in curves.values())
    top = 1.05 * max((curve["count"] / curve["count"].sum()).max() for curve, _ in curves.values())
    for (name, (curve, ece)), upper_axis, lower_axis in zip(curves.items(), upper_axes, lower_axes):
        _draw_accuracy(upper_axis, curve, lower)
        upper_axis.set_title(f"{name}\n", color=INK, fontsize=11, fontweight="bold")
        upper_axis.text(0.5, 1.03, f"ECE {ece:.4f}", color=GREY, ha="center", transform=upper_axis.transAxes)
        left, width = curve["edges"][:-1], np.diff(curve["edges"])
        shares = curve["count"] / curve["count"].sum()
        lower_axis.bar(left + 0.05 * width, shares, 0.9 * width, color=GREY, align="edge")
        lower_axis.set(xlim=(lower, 1), ylim=(0, top), box_aspect=0.28)
        lower_axis.set_xlabel("confidence", color=INK)
        _tidy(lower_axis)
    for upper_axis, lower_axis in axes[:, 0].reshape(num_rows, 2):
        upper_axis.set_ylabel("accuracy", color=INK)
        lower_axis.set_ylabel("share of\npredictions", color=INK)
    for axis in (*upper_axes[len(curves) :], *lower_axes[len(curves) :]):
        axis.remove()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = 4 if num_columns > 1 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK)
    figure.savefig(path, format="png", dpi=150)


def confusion_matrices(matrices: Mapping[str, tuple[Sequence, Sequence[str]]], path: str | os.PathLike) -> None:
    """
    Write a PNG of confusion matrices, one panel an attribute: a row a label, which shows what was guessed for it.

    Args:
        matrices (`Mapping`): For each attribute its counts (V, V) and the names of its V values.
        path (`str`): File to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    sizes = [len(values) for _, values in matrices.values()]
    figure = Figure(figsize=(sum(0.34 * n + 1.6 for n in sizes), 0.34 * max(sizes) + 2.1), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(sizes), squeeze=False, width_ratios=sizes)[0]
    colours = LinearSegmentedColormap.from_list("share", ["white", BLUE])
    for axis, (name, (counts, values)) in zip(panels, matrices.items()):
        counts = np.asarray(counts, dtype=float)
        shares = 100 * counts / counts.sum(1, keepdims=True).clip(1)
        axis.imshow(shares, cmap=colours, vmin=0, vmax=100)
        for row, column in zip(*(shares >= 0.5).nonzero()):
            colour = "white" if shares[row, column] > 60 else INK
            axis.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axis.set_title(name, color=INK, fontsize=11, fontweight="bold")
        axis.set(xlabel="guess", ylabel="label")
        axis.set_xticks(range(len(values)), values, rotation=90)
        axis.set_yticks(range(len(values)), values)
        axis.tick_params(colors=GREY, labelcolor=INK, labelsize=9, length=0)
        axis.spines[:].set_color(PALE)
    figure.savefig(path, format="png", dpi=130)


def _pixels(image: Image.Image | torch.Tensor) -> torch.Tensor:
    """uint8 (3, H, W)."""
    if isinstance(image, Image.Image):
        return pil_to_tensor(image.convert("RGB"))
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = ((image.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return image.expand(3, -1, -1)


def _with_header(grid: Image.Image, labels: Sequence[str], column_width: int) -> Image.Image:
    """The grid with a text above each column."""
    font = ImageFont.load_default(size=max(9, min(14, column_width // 6)))
    style = dict(font=font, align="center", spacing=font.size // 4)
    texts = [textwrap.fill(label, max(4, round(1.7 * column_width / font.size))) for label in labels]
    height = int(max(ImageDraw.Draw(grid).multiline_textbbox((0, 0), text, **style)[3] for text in texts)) + font.size
    labelled = Image.new("RGB", (grid.width, height + grid.height), "white")
    labelled.paste(grid, (0, height))
    draw = ImageDraw.Draw(labelled)
    for column, text in enumerate(texts):
        place = ((column + 0.5) * column_width, height - 0.4 * font.size)
        draw.multiline_text(place, text, INK, anchor="md", **style)
    return labelled


def _with_labels(grid: Image.Image, labels: Sequence[str], num_rows: int, row_height: int) -> Image.Image:
    """The grid with a text left of each row, in as broad a column as the texts need when wrapped at spaces."""
    font = ImageFont.load_default(size=max(10, min(18, row_height // 4)))
    style = dict(font=font, align="right", spacing=font.size // 4)
    texts = [textwrap.fill(label, 26, break_long_words=False) for label in labels]
    width = max(ImageDraw.Draw(grid).multiline_textbbox((0, 0), text, **style)[2] for text in texts)
    margin = int(width + 1.5 * font.size)
    labelled = Image.new("RGB", (margin + grid.width, grid.height), "white")
    labelled.paste(grid, (margin, 0))
    draw = ImageDraw.Draw(labelled)
    for row, text in enumerate(texts):
        place = (margin - 0.5 * font.size, grid.height - (num_rows - row - 0.5) * row_height)
        draw.multiline_text(place, text, INK, anchor="rm", **style)
    return labelled


def _lowest(curve: Mapping) -> float:
    """Where the axes may begin, in tenths: below every bin in use and every accuracy."""
    used = curve["count"] > 0
    return np.floor(10 * min(curve["edges"][:-1][used].min(), curve["accuracy"][used].min(), 0.9)) / 10


def _draw_accuracy(axis, curve: Mapping, lower: float) -> None:
    """Bars of accuracy; what they lack of the confidence stands on top in red, what exceeds it in pale blue."""
    used = curve["count"] > 0
    left, width = curve["edges"][:-1][used], np.diff(curve["edges"])[used]
    accuracy, confidence = curve["accuracy"][used], curve["confidence"][used]
    shared = np.minimum(accuracy, confidence)
    bar = {"width": 0.9 * width, "align": "edge"}
    left = left + 0.05 * width
    axis.bar(left, shared, color=BLUE, label="accuracy", **bar)
    axis.bar(left, confidence - shared, bottom=shared, color=RED, label="too confident by", **bar)
    axis.bar(left, accuracy - shared, bottom=shared, color=LIGHT_BLUE, label="too cautious by", **bar)
    axis.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle=(0, (4, 3)), label="perfect calibration")
    ticks = np.linspace(lower, 1, 6) if lower in (0, 0.5) else np.arange(lower, 1.05, 0.1)
    axis.set(xlim=(lower, 1), ylim=(lower, 1), xticks=ticks, yticks=ticks, box_aspect=1)
    _tidy(axis)


def _tidy(axis) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.grid(axis="y", color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=GREY, labelcolor=INK, labelsize=9)
