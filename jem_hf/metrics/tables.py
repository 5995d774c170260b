"""A report as Markdown tables. What is not defined is "-"."""

import math
from collections.abc import Iterator

PREDICTION = "accuracy f1_macro f1_micro ap auroc nll brier ece ece_equal_mass ece_positive".split()
PER_ATTRIBUTE = "frequency accuracy f1 ap auroc nll brier ece".split()
PER_VALUE = "frequency precision recall ap ece".split()
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
    "classifier_of_codes": "classifier of codes",
    "classifier_temperature": "classifier, temperature-scaled",
    "classifier_attribute_scaling": "classifier, scale and bias per attribute",
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


def tables(report: dict) -> str:
    """The report of `evaluate` as Markdown tables."""
    return "\n\n".join([*_prediction(report), *_generation(report), *_energy(report), *_per_attribute(report)])


def format_number(value: float | str | list | None) -> str:
    """A cell of a table: numbers with four digits, small ones with an exponent; "-" for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, list):
        return ", ".join(map(format_number, value))
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
    return str(value)


def _prediction(report: dict) -> Iterator[str]:
    models = {"joint": report["prediction"]} | report.get("baselines", {})
    rows = [[MODELS[name], *map(row.get, PREDICTION)] for name, row in models.items()]
    yield _table(f"Prediction ({report['num_images']} test images):", ["", *PREDICTION], rows)
    if names := list(report.get("comparison", report["prediction"].get("intervals", {}))):
        rows = [[MODELS[model], *(_interval(row["intervals"][key]) for key in names)] for model, row in models.items()]
        if "comparison" in report:
            differences = [_difference(report["comparison"][key]) for key in names]
            rows.append([f"joint model less {MODELS[report['rival']]}", *differences])
        yield _table("95% bootstrap intervals:", ["", *names], rows)
    for what, why in report.get("left_out", {}).items():
        yield f"Left out: {what} ({why})."
    if found := report.get("zero_shot"):
        yield _table(
            f"Combinations kept out of training told from each other ({found['num_images']} images that carry one of "
            f"{'; '.join(found['combinations'])}):",
            ["", "accuracy"],
            [[name, found[key]] for key, name in RECOGNITION.items() if key in found],
        )


def _generation(report: dict) -> Iterator[str]:
    generation, kinds = report.get("generation", {}), _kinds(report)
    if kinds:
        accuracy = format_number(report["oracle"]["accuracy"])
        yield _table(
            f"Generation, judged by an oracle (accuracy on real images {accuracy}):",
            ["request", *GENERATION.values()],
            [[KINDS[kind], *map(row.get, GENERATION)] for kind, row in kinds.items()],
        )
        yield (
            "Agreement: requested attributes that the oracle sees; all right: images in which it sees all of them. "
            "Floor and ceiling: the same of real images, any ones and such that carry the labels; share: the way from "
            "floor to ceiling; of ceiling: all right divided by its ceiling."
        )
    names = ("frechet_distance", "kernel_distance")
    distances = [(name, kind, row[name]) for name in names for kind, row in kinds.items() if name in row]
    if distances:
        sets, given_back = ["samples", "real", "blurred"], ""
        if "reconstructed" in distances[0][2]:
            sets, given_back = [*sets, "reconstructed"], ", and as the autoencoder gives them back"
        yield _table(
            "Distance to the training images in the features of a network made for it, of samples, of as many real "
            f"test images that carry the labels, of these blurred{given_back}:",
            ["", *sets],
            [[f"{name.replace('_', ' ')}, {kind}", *map(found.get, sets)] for name, kind, found in distances],
        )
    diversity = {kind: row["diversity"] for kind, row in kinds.items() if row.get("diversity")}
    if diversity:
        yield _table(
            "Diversity, the mean distance between two images of one request:",
            ["", "samples", "real"],
            [
                [f"{measure}, {kind}", found["samples"], found["real"]]
                for kind, measures in diversity.items()
                for measure, found in measures.items()
            ],
        )
    if score := generation.get("classification_accuracy_score"):
        yield _table(
            f"Classification accuracy score: a classifier trained on {score['num_images']} images, tested on real "
            "ones:",
            ["trained on", "accuracy", "ap"],
            [[name, score[name]["accuracy"], score[name]["ap"]] for name in ("samples", "real")],
        )
    if nearest := generation.get("nearest_training_image"):
        samples, real = format_number(nearest["samples"]), format_number(nearest["real"])
        text = "Median distance to the nearest training image (root mean square, black to white is 1): "
        yield f"{text}samples {samples}, real test images {real}."


def _energy(report: dict) -> Iterator[str]:
    if energy := report.get("energy"):
        rows = [[name, *map(row.get, ("auroc", "fpr95", "log_p_auroc"))] for name, row in energy.items()]
        header = ["outliers", "AUROC", "FPR at 95%", "AUROC of log p(x) alone"]
        yield _table(
            "Outliers told from real images by the outlier score (where there is none, by log p(x)):", header, rows
        )
    if found := report.get("likelihood"):
        number, low, high = (format_number(found[key]) for key in ("bits_per_dimension", "low", "high"))
        yield (
            f"Bits per dimension of {found['num_images']} test images: {number} [{low}, {high}] "
            f"({found['num_chains']} chains over {found['num_temperatures']} temperatures; log Z is "
            f"{found['log_z_forward']:.1f} on the way from noise to the model and {found['log_z_reverse']:.1f} back: "
            "if far apart, take more temperatures)."
        )


def _per_attribute(report: dict) -> Iterator[str]:
    predicted = {name: dict(row) for name, row in report["prediction"]["per_attribute"].items()}
    values = {
        f"{name}={value}": row for name, each in predicted.items() for value, row in each.get("per_value", {}).items()
    }
    for row in predicted.values():
        if "per_value" in row:  # which have their own table
            row["frequency"] = None
    sections = [("Prediction of each attribute:", predicted, PER_ATTRIBUTE)]
    if values:
        sections.append(("Prediction of each value, against all others of its attribute:", values, PER_VALUE))
    for kind, row in _kinds(report).items():
        if agreed := row.get("per_attribute"):
            text = f"Agreement of each attribute ({KINDS[kind]}):"
            sections.append((text, agreed, ("agreement", "floor", "ceiling")))
    for text, attributes, keys in sections:
        yield _table(text, ["attribute", *keys], [[name, *map(row.get, keys)] for name, row in attributes.items()])


def _kinds(report: dict) -> dict[str, dict]:
    generation = report.get("generation", {})
    return {kind: generation[kind] for kind in KINDS if kind in generation}


def _table(text: str, header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return f"{text}\n\n" + "\n".join("| " + " | ".join(map(format_number, line)) + " |" for line in lines)


def _interval(interval: list[float] | None) -> str | None:
    """[0.81, 0.84] as "[.810, .840]"."""
    return None if interval is None else f"[{_short(interval[0])}, {_short(interval[1])}]"


def _difference(found: dict | None) -> str | None:
    return None if found is None else f"{_short(found['difference'])} {_interval([found['low'], found['high']])}"


def _short(value: float) -> str:
    text = f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
