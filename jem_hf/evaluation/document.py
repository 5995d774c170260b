"""All that the folder of a measured model needs beside the weights: report, pictures, card."""

from pathlib import Path

from ..hub.cards import write_card
from ..models.modeling_jem import JemModel
from ..models.pipeline_jem import AttributeConditionalGenerationPipeline
from ..plots import image_grid
from .report import write_report


def document(
    model: JemModel, report: dict, pictures: dict, folder: str | Path, card: dict, recipe: str, cost: str = ""
) -> None:
    """
    Write report, pictures and card of a model into its folder.

    Args:
        report, pictures (`dict`): From [`evaluate`].
        card (`dict`): The section of that name of the recipe, see [`write_card`]; `requests` are drawn, a row each.
        recipe (`str`): Name or path for `jem-hf train`.
        cost (`str`, *optional*): What training took.
    """
    if card.get("license") == "other":  # data with terms of its own: none of it goes where the card goes
        pictures = {name: picture for name, picture in pictures.items() if name != "nearest"}
    write_report(report, pictures, folder, model.config)
    card = dict(card)
    requests = card.pop("requests", [""])
    draw = AttributeConditionalGenerationPipeline(model)
    images = [item["image"] for row in draw(requests, num_images=8, seed=0) for item in row]
    scale = max(1, 64 // model.config.image_size)
    image_grid(images, scale=scale, row_labels=requests if any(requests) else None).save(Path(folder) / "samples.png")
    write_card(folder, model.config, report, recipe=recipe, cost=cost, requests=requests, **card)
