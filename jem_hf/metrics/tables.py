"""A report as Markdown tables."""

import math

PREDICTION = (
    "accuracy f1_macro f1_micro ap auroc nll brier ece ece_equal_mass ece_positive".split()  # one column each
)
PER_ATTRIBUTE = "frequency accuracy f1 ap auroc nll brier ece".split()
GENERATION = {
    "agreement": "agreement",
    "floor": "floor",
    "ceiling": "ceiling",
    "share": "share",
    "all_right": "all right",
    "floor_all_right": "floor",
    "ceiling_all_right": "ceiling",
    "all_right_of_ceiling": "of ceiling",
    "num_images": "images",
}
MODELS = {
    "joint": "joint model",
    "classifier": "classifier",
    "classifier_temperature": "classifier, temperature-scaled",
    "classifier_attribute_scaling": "per-attribute scale and bias",
}
KINDS = {
    "full": "every attribute given, as in the test split",
    "full_novel": "every attribute given, combinations never seen in training among them",
    "seen": "pairs and triples, as in the test split",
    "novel": "combinations never seen together in training",
}
SETS = ("samples", "real", "blurred")


def tables(report: dict) -> str:
    """The report as Markdown tables."""
    parts = _prediction(report) + _zero_shot(report) + _generation(report) + _energy(report) + _per_attribute(report)
    return "\n\n".join(parts)


def _prediction(report: dict) -> list[str]:
    models = {"joint": report["prediction"]} | report["baselines"]
    rows = [[MODELS[name], *(row.get(key) for key in PREDICTION)] for name, row in models.items()]
    parts = [f"Prediction ({report['num_images']} test images):", _table(["", *PREDICTION], rows)]
    if "comparison" in report:
        names = list(report["comparison"])
        rows = [[MODELS[model], *(_interval(row["intervals"][key]) for key in names)] for model, row in models.items()]
        differences = [_difference(report["comparison"][key]) for key in names]
        rows.append(["joint model less classifier, temperature-scaled", *differences])
        parts += ["95% bootstrap intervals:", _table(["", *names], rows)]
    return parts


def _zero_shot(report: dict) -> list[str]:
    if "zero_shot" not in report:
        return []
    found = report["zero_shot"]
    keys = {
        "accuracy": "joint model",
        "classifier": "classifier",
        "chance": "chance",
        "most_frequent": "most frequent",
    }
    return [
        f"Combinations kept out of training told from each other ({found['num_images']} images that carry one of "
        f"{'; '.join(found['combinations'])}):",
        _table(["", "accuracy"], [[name, found[key]] for key, name in keys.items()]),
    ]


def _generation(report: dict) -> list[str]:
    if "generation" not in report:
        return []
    found = report["generation"]
    accuracy = _cell(report["oracle"]["accuracy"])
    kinds = {kind: found[kind] for kind in KINDS if kind in found}
    return [
        f"Generation, judged by an oracle (accuracy on real images {accuracy}):",
        _table(
            ["request", *GENERATION.values()],
            [[KINDS[kind], *map(row.get, GENERATION)] for kind, row in kinds.items()],
        ),
        "Agreement: requested attributes that the oracle sees; all right: images in which it sees all of them. Floor "
        "and ceiling: the same of real images, any ones and such that carry the labels; share: the way from floor to "
        "ceiling; of ceiling: all right divided by its ceiling.",
        *_distances(kinds),
        *_diversity(kinds),
        *_classification_accuracy_score(found.get("classification_accuracy_score")),
        *_nearest(found.get("nearest_training_image")),
    ]


def _distances(kinds: dict) -> list[str]:
    rows = [
        [f"{distance.replace('_', ' ')}, {kind}", *(row[distance][name] for name in SETS)]
        for distance in ("frechet_distance", "kernel_distance")
        for kind, row in kinds.items()
        if distance in row
    ]
    text = (
        "Distance to the training images in the features of a network made for it, of samples, of as many real test "
        "images that carry the labels, and of these blurred:"
    )
    return [text, _table(["", *SETS], rows)] if rows else []


def _diversity(kinds: dict) -> list[str]:
    rows = [
        [f"{measure}, {kind}", values["samples"], values["real"]]
        for kind, row in kinds.items()
        for measure, values in (row.get("diversity") or {}).items()
    ]
    text = "Diversity, the mean distance between two images of one request:"
    return [text, _table(["", "samples", "real"], rows)] if rows else []


def _classification_accuracy_score(score: dict | None) -> list[str]:
    if score is None:
        return []
    rows = [[name, score[name]["accuracy"], score[name]["ap"]] for name in ("samples", "real")]
    return [
        f"Classification accuracy score: a classifier trained on {score['num_images']} images, tested on real ones:",
        _table(["trained on", "accuracy", "ap"], rows),
    ]


def _nearest(distance: dict | None) -> list[str]:
    if distance is None:
        return []
    return [
        "Median distance to the nearest training image (root mean square, black to white is 1): "
        f"samples {_cell(distance['samples'])}, real test images {_cell(distance['real'])}."
    ]


def _energy(report: dict) -> list[str]:
    if "energy" not in report:
        return []
    rows = [[name, row["auroc"]] for name, row in report["energy"].items()]
    return ["Outliers told from real images by log p(x):", _table(["outliers", "AUROC"], rows)]


def _per_attribute(report: dict) -> list[str]:
    rows = report["prediction"]["per_attribute"]
    parts = [
        "Prediction of each attribute:",
        _table(["attribute", *PER_ATTRIBUTE], [[name, *map(row.get, PER_ATTRIBUTE)] for name, row in rows.items()]),
    ]
    for kind in ("full", "full_novel"):
        rows = report.get("generation", {}).get(kind, {}).get("per_attribute")
        if rows:
            keys = ("agreement", "floor", "ceiling")
            parts += [
                f"Agreement of each attribute ({KINDS[kind]}):",
                _table(["attribute", *keys], [[name, *map(row.get, keys)] for name, row in rows.items()]),
            ]
    return parts


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


def _interval(interval: list[float] | None) -> str | None:
    """[0.81, 0.84] as "[.810, .840]"."""
    return None if interval is None else f"[{_short(interval[0])}, {_short(interval[1])}]"


def _difference(found: dict | None) -> str | None:
    return None if found is None else f"{_short(found['difference'])} {_interval([found['low'], found['high']])}"


def _short(value: float) -> str:
    text = f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
