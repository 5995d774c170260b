"""A report as files: JSON for machines, Markdown, pictures and a model card for people."""

import json
from pathlib import Path

import torch
from PIL import Image

from ..hub.cards import write_card
from ..metrics.tables import KINDS, MODELS, tables
from ..models.configuration_jem import JemConfig
from ..models.image_processing_jem import to_pixels
from ..models.modeling_jem import JemModel
from ..models.pipeline_jem import AttributeConditionalGenerationPipeline
from ..models.requests_jem import crossed, format_request
from ..plots import confusion_matrices, image_grid, reliability_diagram


def write_report(report: dict, pictures: dict, folder: str | Path, config: JemConfig) -> None:
    """
    Write `report.json`, `report.md` and its pictures.

    These are `reliability.png` where there is a label, `confusion.png` where an attribute has several values, a grid
    of samples for each kind of request, and `nearest.png`: samples beside their nearest training images. See
    [`evaluate`] for `report` and `pictures`.
    """
    folder, figures = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    curves = {MODELS[name]: curve for name, curve in pictures["reliability"].items()}
    if report["prediction"]["ece"] is not None:
        reliability_diagram(curves, folder / "reliability.png")
        figures.append("![Reliability diagram](reliability.png)")
    if confusion := _confusion(report["prediction"]["per_attribute"], config):
        confusion_matrices(confusion, folder / "confusion.png")
        figures.append("![Confusion matrices](confusion.png)\n\nGuesses among the images of each value, in per cent.")
    for name, (images, requests) in pictures.get("samples", {}).items():
        _sample_grid(images, requests, config).save(folder / f"samples-{name}.png")
        figures.append(f"![{KINDS[name]}](samples-{name}.png)\n\n{KINDS[name].capitalize()}.")
    if "nearest" in pictures:
        _nearest_grid(*pictures["nearest"]).save(folder / "nearest.png")
        figures.append("![Nearest training images](nearest.png)\n\nSamples above their nearest training images.")
    (folder / "report.md").write_text("\n\n".join([f"# Report\n\n{tables(report)}", *figures]) + "\n")


def document(
    model: JemModel, report: dict, pictures: dict, folder: str | Path, card: dict, recipe: str, cost: str = ""
) -> None:
    """
    Write report, pictures and card of a model into its folder.

    Args:
        report, pictures (`dict`): From [`evaluate`].
        card (`dict`): The section of that name of the recipe, see [`write_card`]; `requests` are drawn, a row each,
            and `grid`, "rows" and "columns" as of [`crossed`], with an image for each combination.
        recipe (`str`): Name or path for `jem-hf train`.
        cost (`str`, *optional*): What training took.
    """
    if card.get("license") == "other":  # data with terms of its own: none of it goes where the card goes
        pictures = {name: picture for name, picture in pictures.items() if name != "nearest"}
    write_report(report, pictures, folder, model.config)
    card = dict(card)
    requests, grid = card.pop("requests", [""]), card.pop("grid", None)
    draw = AttributeConditionalGenerationPipeline(model)
    images = [item["image"] for row in draw(requests, num_images=8, seed=0) for item in row]
    scale = _scale(model.config.image_size)
    image_grid(images, scale=scale, row_labels=requests if any(requests) else None).save(Path(folder) / "samples.png")
    if grid:
        cells, row_labels, column_labels = crossed(grid["rows"], grid["columns"], "", model.config)
        images = [item["image"] for (item,) in draw(cells, seed=0)]
        layout = dict(row_labels=row_labels, column_labels=column_labels)
        image_grid(images, len(column_labels), scale, **layout).save(Path(folder) / "grid.png")
    write_card(folder, model.config, report, recipe=recipe, cost=cost, requests=requests, **card)


def _confusion(per_attribute: dict, config: JemConfig) -> dict:
    """Confusion matrices by attribute, and the names of their values."""
    counts = {name: each.get("confusion", []) for name, each in per_attribute.items()}
    return {name: (rows, config.values(name)) for name, rows in counts.items() if any(map(any, rows))}


def _sample_grid(images: torch.Tensor, requests: torch.Tensor, config: JemConfig) -> Image.Image:
    """The first 64 images, eight a row; a row of sparse requests, which share one, carries its text."""
    images, requests = images[:64], requests[:64:8]
    sparse = (requests < 0).any()
    texts = [format_request(request.tolist(), config) for request in requests] if sparse else None
    return image_grid(images, scale=_scale(config.image_size), row_labels=texts)


def _nearest_grid(images: torch.Tensor, nearest: torch.Tensor) -> Image.Image:
    """Full rows of eight samples, or one of fewer, each above its nearest training image."""
    columns = min(8, len(images))
    num_rows = len(images) // columns
    pairs = torch.stack([images, to_pixels(nearest)])[:, : num_rows * columns].unflatten(1, (num_rows, columns))
    rows = pairs.transpose(0, 1).flatten(0, 2)
    labels = ["samples", "training images"] * num_rows
    return image_grid(rows, columns, _scale(images.shape[-1]), row_labels=labels)


def _scale(image_size: int) -> int:
    return max(1, 64 // image_size)
