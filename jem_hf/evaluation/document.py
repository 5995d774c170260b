"""A model measured, and all that its folder needs beside the weights: report, pictures, card."""

from pathlib import Path

from ..hub.cards import write_card
from ..models.modeling_jem import JemModel
from ..models.pipeline_jem import AttributeConditionalGenerationPipeline
from ..plots import image_grid
from .evaluate import evaluate
from .report import write_report


def document(
    model: JemModel, splits: dict, folder: str | Path, card: dict, recipe: str, cost: str = "", **evaluation
) -> dict:
    """
    Evaluate a model and write all that its folder needs beside the weights: report, pictures, card.

    Args:
        splits: `AttributeTensors` by name, see [`evaluate`].
        card: the section of the same name of the recipe, see [`write_card`]; `requests` are drawn, a row each.
        recipe: name or path for `jem-hf train`.
        cost: what training took.
        evaluation: further arguments of [`evaluate`].

    Returns:
        The report.
    """
    report, pictures = evaluate(model, splits, **evaluation)
    if card.get("license") == "other":  # data with terms of its own: none of it goes where the card goes
        pictures.pop("nearest", None)
    write_report(report, pictures, folder, model.config)
    card = dict(card)
    requests = card.pop("requests", [""])
    draw = AttributeConditionalGenerationPipeline(model)
    images = [item["image"] for row in draw(requests, num_images=8, seed=0) for item in row]
    scale = max(1, 64 // model.config.image_size)
    image_grid(images, scale=scale, row_labels=requests if any(requests) else None).save(Path(folder) / "samples.png")
    write_card(folder, model.config, report, recipe=recipe, cost=cost, requests=requests, **card)
    return report
