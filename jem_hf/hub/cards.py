"""Model cards: the README.md of a checkpoint, whose front matter declares the model to the zoo and the Hub."""

import re
import shutil
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.tensors import AttributeTensors
from ..metrics.tables import tables
from ..models.configuration_jem import JemConfig
from ..models.hub_jem import TASK, describe_files
from ..models.modeling_jem import JemModel
from ..version import __version__

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
{num_parameters:,} parameters), made with `jem_hf`. It predicts the attributes, draws images for any combination of
them, and gives every pair of image and attributes an energy. Method: Kelly, Zemel and Grathwohl, "Directly Training
Joint Energy-Based Models for Conditional Synthesis and Calibrated Prediction of Multi-Attribute Data" (arXiv
2108.04227), trained by contrastive divergence as there or by Equilibrium Matching (arXiv 2510.02300).

{samples}## Use

```python
import jem_hf
from transformers import pipeline

generate = pipeline("{task}", model=jem_hf.JemModel.from_pretrained("{path}"))
images = generate("{example}", num_images=4)  # images[0]["image"] is a PIL image
```

Attributes: {attributes}.
In a request `&` joins them, `~` denies one, and `Attribute=value` picks one of the values in brackets; what it leaves
out is free.

## Data

{data}

## How it was trained

{training}

Made with {versions}.

## Results

{results}

## Limits

{limits}

{hand_written}
"""

MEASURED = """\
`{evaluation}` prints these numbers. The oracle that judges
generated images is a residual network of another architecture and seed, trained on the real images; *floor* is its
agreement with real images taken without regard to the request, *ceiling* with real images that carry the requested
labels. More is in [report.md](report.md) and [report.json](report.json).

{tables}"""

BEGIN, END = "<!-- hand-written: kept when the card is written anew -->", "<!-- end of hand-written -->"
PACKAGES = ("torch", "transformers", "timm")


def write_card(
    folder: str | Path,
    config: JemConfig,
    report: dict,
    *,
    name: str,
    recipe: str | None,
    dataset: str | None,
    requests: list[str] = ("",),
    data: str = "",
    limits: str = "It draws what its training data shows, at its resolution, and no more.",
    base_model: str | None = None,
    cost: str = "",
    evaluation: str = "",
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    repo_id: str | None = None,
    revision: str = "main",
    dataset_name: str | None = None,
    caption: str = "",
) -> Path:
    """
    Write `README.md`: front matter (all that the zoo knows of a model) and text.

    What stands between the markers at its end is kept. Of paths that exist here the last part alone is told.

    Args:
        folder: of the checkpoint, complete: the card has the hashes of its files.
        report: from [`evaluate`]; "num_parameters" alone, or with "prediction", where no more was measured.
        recipe: name or path for `jem-hf train`, if there is one.
        dataset: name or path for `jem-hf evaluate`, if known.
        requests: what the rows of `samples.png` show; the first is the example.
        data, limits, cost: text about them; `cost` follows the training command.
        base_model: name, Hub id or path of the model that it was fine-tuned from.
        evaluation: the command that prints the numbers, if not `jem-hf evaluate`.
        license, license_name, license_link: as the Hub has them; the last two for a license "other".
        dataset_name: what `dataset` is called beside the numbers, where it is only a part of it.
        repo_id, revision: where on the Hub the model is, if it is there.
        caption: what `samples.png` shows, where the picture does not say it.
    """
    folder, path = Path(folder), name
    names = (name, recipe, dataset, base_model)
    name, recipe, dataset, base_model = (each and _without_folders(each) for each in names)
    card_data = ModelCardData(
        model_name=name,
        license=license,
        license_name=license_name,
        license_link=license_link,
        base_model=base_model if base_model and "/" in base_model else None,  # the Hub takes its own ids alone
        library_name="transformers",
        pipeline_tag="unconditional-image-generation",
        tags=[TASK, "image-classification", "energy-based-model", "jem"],
        eval_results=_eval_results(report, dataset or "unknown", dataset_name) or None,
        name=name,
        repo_id=repo_id,
        revision=revision if repo_id else None,
        recipe=recipe,
        dataset=dataset,
        attributes=config.attributes,
        image_size=config.image_size,
        num_parameters=report["num_parameters"],
        files=describe_files(folder),
    )
    evaluation = evaluation or f"jem-hf evaluate {name} --dataset {dataset}"
    training = f"`jem-hf train {recipe}`. {cost}" if recipe else cost or "This card does not know."
    if base_model:
        training = f"Fine-tuned from `{base_model}`: {training}"
    body = BODY.format(
        name=name,
        num_attributes=len(config.attributes),
        image_size=config.image_size,
        num_parameters=report["num_parameters"],
        task=TASK,
        example=requests[0] or _example(config),
        attributes=", ".join(_with_values(name, config) for name in config.attributes),
        data=data.strip() or (f"`{dataset}`." if dataset else "This card does not know."),
        path=path,
        samples=f"![Images drawn by the model](samples.png)\n\n{caption}".strip() + "\n\n"
        if (folder / "samples.png").is_file()
        else "",
        training=training.strip(),
        versions=", ".join([f"jem_hf {__version__}", *(f"{package} {version(package)}" for package in PACKAGES)]),
        results=_results(report, evaluation),
        limits=limits.strip(),
        hand_written=_hand_written(folder / "README.md"),
    )
    ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{body}").save(folder / "README.md")
    return folder / "README.md"


def write_draft(folder: str | Path, model: JemModel, name: str) -> Path:
    """The card of a model of which no more is known than what it is."""
    return write_card(
        folder, model.config, {"num_parameters": model.num_parameters()}, name=name, recipe=None, dataset=None
    )


def write_training_card(folder: str | Path, trainer) -> None:
    """
    The card of a checkpoint that a [`JemTrainer`] has just saved, from what it knows; `trainer.card` has more of it.

    A card that declares the very weights in the folder stays: it may know more.
    """
    folder, args, logs = Path(folder), trainer.args, trainer.state.log_history
    if (folder / "README.md").is_file():
        declared = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.get("files") or []
        weights = [each for each in describe_files(folder) if each["path"].endswith(".safetensors")]
        if all(each in declared for each in weights):
            return
    grids = sorted(Path(args.output_dir).glob("samples-*.png"), key=lambda path: path.stat().st_mtime)
    if grids:
        shutil.copyfile(grids[-1], folder / "samples.png")
    metrics = next((log for log in reversed(logs) if "eval_accuracy" in log), {})
    names = ("accuracy", "f1_macro", "f1_micro", "ap", "auroc", "nll", "brier", "ece")
    report = {
        "num_parameters": trainer.model.num_parameters(),
        "prediction": {name: metrics[f"eval_{name}"] for name in names if f"eval_{name}" in metrics},
    }
    config = trainer.model.config
    network = ", ".join(f"{name}={value}" for name, value in config.backbone_kwargs.items())
    known = {
        "name": args.hub_model_id or args.output_dir,
        "recipe": None,
        "dataset": None,
        "data": _data(trainer),
        "cost": f"Objective `{args.objective}`, {trainer.state.global_step} steps of {args.train_batch_size} images, "
        f"learning rate {args.learning_rate:g}, network `{config.backbone}({network})`.",
        "caption": "*Drawn for the labels of images kept out of training.*",
    }
    card = {name: value for name, value in trainer.card.items() if name != "requests"}
    write_card(folder, config, report, **known | card)


def _data(trainer) -> str:
    """Name and numbers of images, as far as a trainer knows them."""
    name = trainer.card.get("dataset")
    uses = ((trainer.train_dataset, "to train on"), (trainer.eval_dataset, "kept out of training"))
    known = [f"`{_without_folders(name)}`"] if name else []
    known += [f"{len(rows):,} images {use}" for rows, use in uses if isinstance(rows, AttributeTensors)]
    return f"{', '.join(known)}." if known else ""


def _example(config: JemConfig) -> str:
    """A request for the first attribute."""
    name = config.attributes[0]
    return f"{name}={config.values(name)[0]}" if name in config.attribute_values else name


def _with_values(name: str, config: JemConfig) -> str:
    return f"{name} ({', '.join(config.values(name))})" if name in config.attribute_values else name


def _without_folders(name: str) -> str:
    """A path of this machine is nobody else's business."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _hand_written(path: Path) -> str:
    """The part of an existing card between the markers, with them; empty in a new one."""
    text = path.read_text() if path.is_file() else ""
    match = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, re.DOTALL)
    return match[0] if match else f"{BEGIN}\n{END}"


def _results(report: dict, evaluation: str) -> str:
    if "baselines" in report:
        return MEASURED.format(evaluation=evaluation, tables=tables(report))
    if report.get("prediction"):
        rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in report["prediction"].items())
        return f"Prediction, at the end of training, on images kept out of it:\n\n| | |\n| --- | ---: |\n{rows}"
    return "Not measured yet: `jem-hf evaluate` does it."


def _eval_results(report: dict, dataset: str, dataset_name: str | None = None) -> list[EvalResult]:
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
                    dataset_name=dataset_name or dataset,
                    dataset_split="test" if "baselines" in report else None,
                    metric_type=key,
                    metric_name=title,
                    metric_value=round(value, 4),
                )
            )
    return results
