"""A report as Markdown tables. What is not defined is "-"."""

import math

PREDICTION = "accuracy f1_macro f1_micro ap auroc nll brier ece ece_equal_mass ece_positive".split()
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
RECOGNITION = {
    "accuracy": "joint model",
    "classifier": "classifier",
    "chance": "chance",
    "most_frequent": "most frequent",
}
KINDS = {
    "full": "every attribute given, as in the test split",
    "full_novel": "every attribute given, combinations never seen in training among them",
    "seen": "pairs and triples, as in the test split",
    "novel": "combinations never seen together in training",
}
SETS = ("samples", "real", "blurred")


def tables(report: dict) -> str:
    """The report of `evaluate` as Markdown tables."""
    generation = report.get("generation", {})
    kinds = {kind: generation[kind] for kind in KINDS if kind in generation}
    parts = _prediction(report)
    parts += [f"Left out: {what} ({why})." for what, why in report.get("left_out", {}).items()]
    if "zero_shot" in report:
        parts += _zero_shot(report["zero_shot"])
    if kinds:
        parts += _requests(kinds, report["oracle"]["accuracy"]) + _distances(kinds) + _diversity(kinds)
    if "classification_accuracy_score" in generation:
        parts += _classification_accuracy_score(generation["classification_accuracy_score"])
    if "nearest_training_image" in generation:
        samples, real = (format_number(generation["nearest_training_image"][name]) for name in ("samples", "real"))
        text = "Median distance to the nearest training image (root mean square, black to white is 1): "
        parts.append(f"{text}samples {samples}, real test images {real}.")
    if "energy" in report:
        rows = [[name, row["auroc"]] for name, row in report["energy"].items()]
        parts += ["Outliers told from real images by log p(x):", _table(["outliers", "AUROC"], rows)]
    if "likelihood" in report:
        parts.append(_likelihood(report["likelihood"]))
    return "\n\n".join(parts + _per_attribute(report, kinds))


def format_number(value: float | str | list | None) -> str:
    """A cell of a table: numbers with four digits, small ones with an exponent; "-" for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, list):
        return ", ".join(map(format_number, value))
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
    return str(value)


def _prediction(report: dict) -> list[str]:
    models = {"joint": report["prediction"]} | report.get("baselines", {})
    rows = [[MODELS[name], *map(row.get, PREDICTION)] for name, row in models.items()]
    parts = [f"Prediction ({report['num_images']} test images):", _table(["", *PREDICTION], rows)]
    names = list(report.get("comparison", report["prediction"].get("intervals", {})))
    if names:
        rows = [[MODELS[model], *(_interval(row["intervals"][key]) for key in names)] for model, row in models.items()]
        if "comparison" in report:
            differences = [_difference(report["comparison"][key]) for key in names]
            rows.append(["joint model less classifier, temperature-scaled", *differences])
        parts += ["95% bootstrap intervals:", _table(["", *names], rows)]
    return parts


def _zero_shot(found: dict) -> list[str]:
    return [
        f"Combinations kept out of training told from each other ({found['num_images']} images that carry one of "
        f"{'; '.join(found['combinations'])}):",
        _table(["", "accuracy"], [[name, found[key]] for key, name in RECOGNITION.items() if key in found]),
    ]


def _requests(kinds: dict, oracle_accuracy: float | None) -> list[str]:
    rows = [[KINDS[kind], *map(row.get, GENERATION)] for kind, row in kinds.items()]
    return [
        f"Generation, judged by an oracle (accuracy on real images {format_number(oracle_accuracy)}):",
        _table(["request", *GENERATION.values()], rows),
        "Agreement: requested attributes that the oracle sees; all right: images in which it sees all of them. Floor "
        "and ceiling: the same of real images, any ones and such that carry the labels; share: the way from floor to "
        "ceiling; of ceiling: all right divided by its ceiling.",
    ]


def _distances(kinds: dict) -> list[str]:
    rows = [
        [f"{distance.replace('_', ' ')}, {kind}", *map(row[distance].get, SETS)]
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


def _classification_accuracy_score(score: dict) -> list[str]:
    rows = [[name, score[name]["accuracy"], score[name]["ap"]] for name in ("samples", "real")]
    return [
        f"Classification accuracy score: a classifier trained on {score['num_images']} images, tested on real ones:",
        _table(["trained on", "accuracy", "ap"], rows),
    ]


def _likelihood(found: dict) -> str:
    number, low, high = (format_number(found[key]) for key in ("bits_per_dimension", "low", "high"))
    return (
        f"Bits per dimension of {found['num_images']} test images: {number} [{low}, {high}] ({found['num_chains']} "
        f"chains over {found['num_temperatures']} temperatures; log Z is {found['log_z_forward']:.1f} on the way from "
        f"noise to the model and {found['log_z_reverse']:.1f} back: if far apart, take more temperatures)."
    )


def _per_attribute(report: dict, kinds: dict) -> list[str]:
    rows = report["prediction"]["per_attribute"]
    parts = [
        "Prediction of each attribute:",
        _table(["attribute", *PER_ATTRIBUTE], [[name, *map(row.get, PER_ATTRIBUTE)] for name, row in rows.items()]),
    ]
    for kind, row in kinds.items():
        agreed, keys = row.get("per_attribute"), ("agreement", "floor", "ceiling")
        if agreed:
            parts += [
                f"Agreement of each attribute ({KINDS[kind]}):",
                _table(["attribute", *keys], [[name, *map(found.get, keys)] for name, found in agreed.items()]),
            ]
    return parts


def _table(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(format_number, line)) + " |" for line in lines)


def _interval(interval: list[float] | None) -> str | None:
    """[0.81, 0.84] as "[.810, .840]"."""
    return None if interval is None else f"[{_short(interval[0])}, {_short(interval[1])}]"


def _difference(found: dict | None) -> str | None:
    return None if found is None else f"{_short(found['difference'])} {_interval([found['low'], found['high']])}"


def _short(value: float) -> str:
    text = f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
