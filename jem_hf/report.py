"""A report as files: JSON for machines, Markdown and pictures for people."""

import json
import math
from pathlib import Path

import torch

from .image_processing_jem import JemImageProcessor
from .plots import image_grid, reliability_diagram
from .requests_jem import format_request

PREDICTION = ("accuracy", "f1_macro", "f1_micro", "ap", "auroc", "nll", "brier", "ece")
GENERATION = ("agreement", "all_right", "floor", "ceiling", "floor_all_right", "ceiling_all_right", "num_images")
KINDS = {
    "full": "every attribute given, as in the test split",
    "full_novel": "every attribute given, combinations never seen in training among them",
    "seen": "pairs and triples, as in the test split",
    "novel": "pairs and triples never seen together in training",
}


def write_report(report: dict, pictures: dict, folder: str | Path, config) -> None:
    """Write `report.json`, `report.md`, `reliability.png` and a grid of samples for each kind of request."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    reliability_diagram(pictures["reliability"], folder / "reliability.png")
    names = []
    for name, (images, requests) in pictures["samples"].items():
        _sample_grid(images, requests, config).save(folder / f"samples-{name}.png")
        names.append(name)
    figures = [f"![{KINDS[name]}](samples-{name}.png)\n\n{KINDS[name].capitalize()}." for name in names]
    figures.insert(0, "![Reliability diagram](reliability.png)")
    (folder / "report.md").write_text("\n\n".join([f"# Report\n\n{tables(report)}", *figures]) + "\n")


def tables(report: dict) -> str:
    """The report as Markdown tables."""
    models = {"joint model": report["prediction"]} | report["baselines"]
    parts = [
        f"Prediction ({report['num_images']} test images):",
        _table(["", *PREDICTION], [[name, *(row[key] for key in PREDICTION)] for name, row in models.items()]),
    ]
    if "generation" in report:
        kinds = [kind for kind in KINDS if kind in report["generation"]]
        rows = [[KINDS[kind], *(report["generation"][kind][key] for key in GENERATION)] for kind in kinds]
        nearest = report["generation"].get("nearest_training_image")
        parts += [
            f"Generation, judged by an oracle (accuracy on real images {_cell(report['oracle']['accuracy'])}):",
            _table(["request", *GENERATION], rows),
        ]
        if nearest:
            parts.append(
                "Median distance to the nearest training image (root mean square, black to white is 1): "
                f"samples {_cell(nearest['samples'])}, real test images {_cell(nearest['real'])}."
            )
    if "energy" in report:
        rows = [[name, row["auroc"]] for name, row in report["energy"].items()]
        parts += ["Outliers told from real images by log p(x):", _table(["outliers", "AUROC"], rows)]
    rows = [
        [name, *(row[key] for key in ("frequency", "accuracy", "f1", "ap", "auroc", "nll", "brier", "ece"))]
        for name, row in report["prediction"]["per_attribute"].items()
    ]
    parts += [
        "Per attribute:",
        _table(["attribute", "frequency", "accuracy", "f1", "ap", "auroc", "nll", "brier", "ece"], rows),
    ]
    return "\n\n".join(parts)


def _table(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
    return str(value)


def _sample_grid(images: torch.Tensor, requests: torch.Tensor, config):
    """The first 64 images, eight a row; a row of sparse requests, which share one, carries its text."""
    scale = max(1, 64 // images.shape[-1])
    images, requests = images[:64], requests[:64:8]
    sparse = (requests < 0).any()
    texts = [format_request(request.tolist(), config) for request in requests] if sparse else None
    return image_grid(JemImageProcessor.to_pil(images), scale=scale, row_labels=texts)
