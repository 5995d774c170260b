"""Model cards: the README.md of a checkpoint, whose front matter declares the model to the zoo and the Hub."""

import re
from importlib.metadata import version
from math import isnan
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..metrics.tables import tables
from ..models.configuration_jem import JemConfig
from ..models.hub_jem import TASK, describe_files
from ..version import __version__

TEMPLATE = Path(__file__).with_name("card_template.md")
TITLES = {
    ("prediction", "accuracy"): ("image-classification", "Accuracy over attributes"),
    ("prediction", "ece"): ("image-classification", "Expected calibration error"),
    ("prediction", "ap"): ("image-classification", "Mean average precision"),
    ("generation", "full"): (TASK, "Oracle agreement, all attributes given"),
    ("generation", "full_novel"): (TASK, "Oracle agreement, all attributes given, novel combinations"),
    ("generation", "seen"): (TASK, "Oracle agreement, pairs and triples"),
    ("generation", "novel"): (TASK, "Oracle agreement, novel pairs and triples"),
}
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

    What stands between the markers at its end is kept. Of paths that exist here the last part alone is written.

    Args:
        folder (`str` or `Path`): Of the checkpoint, complete: the card has the hashes of its files.
        config ([`JemConfig`]): Of the model.
        report (`dict`):
            From [`evaluate`]; "num_parameters" alone, or with "prediction", where no more was measured. A number that
            is not defined is None.
        recipe, dataset (`str`): For `jem-hf train` and `jem-hf evaluate`, if known.
        requests (`list[str]`, *optional*): What the rows of `samples.png` show; the first is the example.
        data, limits, cost (`str`, *optional*): Text about them; `cost` follows the training command.
        base_model (`str`, *optional*): Name, Hub id or path of the model that it was fine-tuned from.
        evaluation (`str`, *optional*): The command that prints the numbers, if not `jem-hf evaluate`.
        license, license_name, license_link (`str`, *optional*): As the Hub has them; the last two for "other".
        dataset_name (`str`, *optional*): What `dataset` is called beside the numbers, where it is only a part of it.
        repo_id, revision (`str`, *optional*): Where on the Hub the model is, if it is there.
        caption (`str`, *optional*): What `samples.png` shows, where the picture does not say it.

    Returns:
        `Path` of the card.
    """
    folder, path = Path(folder), name
    names = (name, recipe, dataset, base_model)
    name, recipe, dataset, base_model = (each and without_folders(each) for each in names)
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
    values = config.attribute_values
    card = ModelCard.from_template(
        card_data,
        template_path=TEMPLATE,
        code_shape=config.code_shape if config.autoencoder else None,
        has_samples=(folder / "samples.png").is_file(),
        has_grid=(folder / "grid.png").is_file(),
        caption=caption.strip(),
        task=TASK,
        path=path,
        example=requests[0] or config.label_names[0],
        attributes_with_values=[f"{a} ({', '.join(values[a])})" if a in values else a for a in config.attributes],
        data=data.strip(),
        base_model_name=base_model,
        cost=cost.strip(),
        versions=", ".join([f"jem_hf {__version__}", *(f"{package} {version(package)}" for package in PACKAGES)]),
        evaluation=evaluation or f"jem-hf evaluate {name} --dataset {dataset}",
        results_tables=tables(report) if "num_images" in report else "",
        prediction=report.get("prediction"),
        limits=limits.strip(),
        hand_written=_hand_written(folder / "README.md"),
    )
    card.save(folder / "README.md")
    return folder / "README.md"


def write_draft(folder: str | Path, model: PreTrainedModel, name: str) -> Path:
    """The card of a model of which no more is known than what it is."""
    report = {"num_parameters": model.num_parameters()}
    return write_card(folder, model.config, report, name=name, recipe=None, dataset=None)


def without_folders(name: str) -> str:
    """The last part of a path: where it is on this machine is nobody else's business."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _hand_written(path: Path) -> str:
    """The part of an existing card between the markers, with them; empty in a new one."""
    text = path.read_text() if path.is_file() else ""
    match = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, re.DOTALL)
    return match[0] if match else f"{BEGIN}\n{END}"


def _eval_results(report: dict, dataset: str, dataset_name: str | None) -> list[EvalResult]:
    """What the Hub shows beside the model; numbers that are not defined are left out."""
    results = []
    for (section, key), (task, title) in TITLES.items():
        value = report.get(section, {}).get(key)
        value = value["agreement"] if isinstance(value, dict) else value
        if value is not None and not isnan(value):
            result = EvalResult(
                task_type=task,
                dataset_type=dataset,
                dataset_name=dataset_name or dataset,
                dataset_split="test" if "num_images" in report else None,
                metric_type=key,
                metric_name=title,
                metric_value=round(value, 4),
            )
            results.append(result)
    return results
