import json

import numpy as np
import pytest
import torch

from jem_hf.evaluation.report import write_report
from jem_hf.metrics.intervals import bootstrap_intervals
from jem_hf.metrics.prediction import prediction_metrics, reliability_curve
from jem_hf.metrics.tables import tables


@pytest.fixture
def report(config):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), (40, 3))
    probabilities[:, [0, 2]] = np.pad(rng.dirichlet(np.ones(2), (40, 2)), [(0, 0), (0, 0), (0, 1)])
    labels = np.stack([rng.integers(-1, v, 40) for v in config.num_values], 1)
    row = prediction_metrics(probabilities, labels, config.attributes, values=config.attribute_values)
    row["intervals"] = bootstrap_intervals(probabilities, labels, config.attributes, 10)
    curve = reliability_curve(probabilities, labels)
    bounds = dict(
        agreement=0.9, floor=0.5, ceiling=1.0, share=0.8, all_right=0.25, floor_all_right=0.1, ceiling_all_right=None
    )
    bounds |= dict(all_right_of_ceiling=None, num_images=16)
    return {
        "num_images": 40,
        "num_parameters": 7,
        "prediction": row,
        "baselines": dict.fromkeys(("classifier", "classifier_temperature", "classifier_attribute_scaling"), row),
        "rival": "classifier_temperature",
        "comparison": {"accuracy": {"difference": -0.0125, "low": -0.02, "high": 0.004}, "ap": None},
        "zero_shot": {
            "accuracy": 0.75, "chance": 0.5, "most_frequent": 0.6, "num_images": 12, "classifier": 0.625,
            "combinations": ["Smiling & Hat", "~Smiling & Hair=red"],
        },
        "oracle": {"accuracy": 0.95},
        "generation": {
            "full": bounds
            | {
                "per_attribute": {"Smiling": {"agreement": 0.91, "floor": 0.52, "ceiling": 0.93}, "Hair": {}, "Hat": {}},  # noqa: E501
                "frechet_distance": {"samples": 7.5, "real": 1.5, "blurred": None},
                "kernel_distance": {"samples": 0.5, "real": -1e-5, "blurred": None},
            },
            "seen": bounds | {"diversity": {"features": {"samples": 3.25, "real": 4.5}}},
            "classification_accuracy_score": {
                "num_images": 64, "samples": {"accuracy": 0.8, "ap": 0.7}, "real": {"accuracy": 0.9, "ap": None},
            },
            "nearest_training_image": {"samples": 0.1, "real": 0.11},
        },
        "energy": {"noise": {"auroc": 0.99}},
    }, {"joint": (curve, row["ece"]), "classifier": (curve, row["ece"])}  # fmt: skip


def test_tables_hold_the_numbers(report):
    text = tables(report[0])
    assert "| joint model less classifier, temperature-scaled | -.013 [-.020, .004] | - |" in text
    assert "| every attribute given, as in the test split | 0.9000 | 0.5000 | 1.0000 | 0.8000 | 0.2500 |" in text
    assert "| frechet distance, full | 7.5000 | 1.5000 | - |" in text
    assert "| kernel distance, full | 0.5000 | -1.0e-05 | - |" in text
    assert "| features, seen | 3.2500 | 4.5000 |" in text
    assert "| samples | 0.8000 | 0.7000 |" in text and "| real | 0.9000 | - |" in text
    assert "Smiling & Hat; ~Smiling & Hair=red" in text and "| chance | 0.5000 |" in text
    assert "| 0.9100 | 0.5200 | 0.9300 |" in text
    widths = [{line.count("|") for line in table.split("\n")} for table in text.split("\n\n") if table[0] == "|"]
    assert all(len(width) == 1 for width in widths)


def test_tables_of_prediction_alone(report):
    alone = {key: report[0][key] for key in ("num_images", "num_parameters", "prediction", "baselines")}
    text = tables(alone)
    assert "joint model" in text and "Generation" not in text and "log p(x)" not in text


def test_files(report, config, tmp_path):
    images = torch.rand(16, 3, 8, 8) * 2 - 1
    requests = torch.tensor([[1, 2, -1], [0, -1, 1]]).repeat_interleave(8, 0)
    nearest = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
    pictures = {
        "reliability": report[1], "samples": {"full": (images, requests.clamp(min=0)), "seen": (images, requests)},
        "nearest": (images, nearest),
    }  # fmt: skip
    write_report(report[0], pictures, tmp_path / "out", config)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report[0]
    markdown = (tmp_path / "out" / "report.md").read_text()
    for name in ("reliability.png", "confusion.png", "samples-full.png", "samples-seen.png", "nearest.png"):
        assert f"]({name})" in markdown
        assert (tmp_path / "out" / name).stat().st_size > 1000
