"""Model cards: the README.md of a checkpoint, whose front matter declares the model to the zoo and the Hub."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .configuration_jem import JemConfig
from .evaluation import evaluate
from .modeling_jem import JemModel
from .pipeline_jem import AttributeConditionalGenerationPipeline
from .plots import image_grid
from .report import tables, write_report

TASK = "attribute-conditional-generation"
TITLES = {
    ("prediction", "accuracy"): ("image-classification", "Accuracy over attributes"),
    ("prediction", "ece"): ("image-classification", "Expected calibration error"),
    ("prediction", "ap"): ("image-classification", "Mean average precision"),
    ("generation", "full"): (TASK, "Oracle agreement, all attributes given"),
    ("generation", "full_novel"): (TASK, "Oracle agreement, all attributes given, novel combinations"),
    ("generation", "seen"): (TASK, "Oracle agreement, pairs and triples"),
    ("generation", "novel"): (TASK, "Oracle agreement, novel pairs and triples"),
}

BODY = """\
# {name}

A joint energy-based model of images and {num_attributes} attributes ({image_size}x{image_size} pixels,
{num_parameters:,} parameters). It predicts the attributes with calibrated probabilities, draws images for any
combination of them, and gives every pair of image and attributes an energy. Method: Kelly, Zemel and Grathwohl,
"Directly Training Joint Energy-Based Models for Conditional Synthesis and Calibrated Prediction of Multi-Attribute
Data" (arXiv 2108.04227), with a warm-up by Equilibrium Matching (arXiv 2510.02300), as
[jem_hf](https://pypi.org/project/jem_hf) implements them.

![Images drawn by the model](samples.png)

```python
import jem_hf
from transformers import pipeline

generate = pipeline("{task}", model=jem_hf.JemModel.from_pretrained("{name}"))
images = generate("{example}", num_images=4)
```

Attributes: {attributes}.

## Data

{data}

## How it was trained

`jem-hf train {recipe}`. {cost}

## Results

`{evaluation}` prints these numbers. The oracle that judges
generated images is a residual network of another architecture and seed, trained on the real images; *floor* is its
agreement with real images taken without regard to the request, *ceiling* with real images that carry the requested
labels.

{tables}

## Limits

{limits}
"""


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
    write_report(report, pictures, folder, model.config)
    card = dict(card)
    requests = card.pop("requests", [""])
    draw = AttributeConditionalGenerationPipeline(model)
    images = [item["image"] for row in draw(requests, num_images=8, seed=0) for item in row]
    scale = max(1, 64 // model.config.image_size)
    image_grid(images, scale=scale, row_labels=requests if any(requests) else None).save(Path(folder) / "samples.png")
    write_card(folder, model.config, report, recipe=recipe, cost=cost, requests=requests, **card)
    return report


def write_card(
    folder: str | Path,
    config: JemConfig,
    report: dict,
    *,
    name: str,
    recipe: str,
    dataset: str,
    requests: list[str] = ("",),
    data: str = "",
    limits: str = "It draws what its training data shows, at its resolution, and no more.",
    cost: str = "",
    evaluation: str = "",
    license: str = "apache-2.0",
    license_name: str | None = None,
    license_link: str | None = None,
) -> Path:
    """
    Write `README.md`: front matter (`model-index` with the numbers of `report`, recipe, dataset) and text.

    Args:
        report: from [`evaluate`].
        recipe: name or path for `jem-hf train`.
        dataset: name or path for `jem-hf evaluate`.
        requests: what the rows of `samples.png` show; the first is the example.
        data, limits, cost: text about them; `cost` follows the training command.
        evaluation: the command that prints the numbers, if not `jem-hf evaluate`.
        license, license_name, license_link: as the Hub has them; the last two for a license "other".
    """
    card_data = ModelCardData(
        model_name=name,
        license=license,
        license_name=license_name,
        license_link=license_link,
        library_name="transformers",
        pipeline_tag="unconditional-image-generation",
        tags=[TASK, "image-classification", "energy-based-model", "jem"],
        eval_results=_eval_results(report, dataset),
        recipe=recipe,
        dataset=dataset,
        attributes=config.attributes,
        image_size=config.image_size,
        num_parameters=report["num_parameters"],
    )
    body = BODY.format(
        name=name,
        num_attributes=len(config.attributes),
        image_size=config.image_size,
        num_parameters=report["num_parameters"],
        task=TASK,
        example=requests[0] or config.attributes[0],
        attributes=", ".join(config.attributes),
        data=data.strip() or f"`{dataset}`.",
        recipe=recipe,
        cost=cost,
        evaluation=evaluation or f"jem-hf evaluate {name} --dataset {dataset}",
        tables=tables(report),
        limits=limits.strip(),
    )
    path = Path(folder) / "README.md"
    ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{body}").save(path)
    return path


def _eval_results(report: dict, dataset: str) -> list[EvalResult]:
    results = []
    for (section, key), (task, title) in TITLES.items():
        value = report.get(section, {}).get(key)
        if isinstance(value, dict):
            value = value["agreement"]
        if value is not None:
            results.append(
                EvalResult(
                    task_type=task,
                    dataset_type=dataset,
                    dataset_name=dataset,
                    dataset_split="test",
                    metric_type=key,
                    metric_name=title,
                    metric_value=round(value, 4),
                )
            )
    return results
