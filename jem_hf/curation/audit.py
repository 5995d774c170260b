"""What is wrong with a data set: labels, gaps, strangers, copies, and combinations that are missing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ..data.tensors import AttributeTensors
from ..metrics.prediction import prediction_metrics
from ..models.image_processing_jem import to_pixels
from ..models.modeling_jem import JemModel
from ..models.values_jem import value_of
from ..training.classifier import train_classifier
from .duplicates import near_duplicates

COLUMNS = {
    "split": str, "row": int, "image": str, "issue": str, "attribute": str, "given_label": str,
    "predicted_label": str, "score": float, "other": str,
}  # fmt: skip
ISSUES = {
    "label": "Labels that are probably wrong",
    "missing": "Labels that are missing, and what they would be",
    "near_duplicate": "Near-duplicates",
    "outlier": "Images that do not belong",
}
# From which the value of a missing label is named, of the way from chance to 1: a probability would say nothing of two
# values, of which one always has half.
MIN_CERTAINTY = 0.5
OUTLIER = 0.99  # percentile of the outlier score
RARE = 10  # images


@dataclass
class Audit:
    """
    The result of [`audit`].

    Args:
        suspects (`list[dict]`):
            A row a suspect, with `COLUMNS`, by issue, the worst first. `image` is its file, where it has one. `score`
            is `p(given label)`, of a missing label `p(predicted label)`, of an outlier its percentile among training
            images, of a near-duplicate the error against the `other` picture ("split/row"); low is bad, except for
            outliers.
        combinations (`list[dict]`):
            Pairs of values of two attributes which fewer than `RARE` images have (`count`), and how many would if the
            two were independent (`expected`), the largest first.
        calibration (`dict`): [`prediction_metrics`] of all labels that are present.
        is_out_of_sample (`bool`): Whether each label was judged by a model that had not learnt from it.
        num_images (`dict[str, int]`): By split.
    """

    suspects: list[dict]
    combinations: list[dict]
    calibration: dict
    is_out_of_sample: bool
    num_images: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """Counts, for machines."""
        issues = {issue: sum(each["issue"] == issue for each in self.suspects) for issue in ISSUES}
        copies = [(each["split"], each["other"].rpartition("/")[0]) for each in self.suspects if each["other"]]
        across = sum(one != other for one, other in copies)
        return {
            "num_images": self.num_images,
            "num_issues": issues | {"near_duplicate_across_splits": across},
            "num_rare_combinations": len(self.combinations),
            "is_out_of_sample": self.is_out_of_sample,
            "calibration": {name: value for name, value in self.calibration.items() if name != "per_attribute"},
        }


def audit(
    model: JemModel,
    splits: dict[str, AttributeTensors],
    *,
    num_folds: int = 0,
    num_epochs: int = 6,
    outliers: bool = True,
    other_values: Mapping[str, Collection[str]] = MappingProxyType({}),
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Audit:
    """
    Look for what is wrong with labelled images.

    Args:
        splits (`dict`): `AttributeTensors` by name.
        num_folds (`int`, *optional*, defaults to 0):
            Judge labels by so many models of the same network, each trained on the other folds: what a model has
            learnt it does not find strange. 0: by the model itself, which is right for data that it has never seen.
        num_epochs (`int`, *optional*, defaults to 6): Passes over the data by each of these.
        outliers (`bool`, *optional*, defaults to `True`): Look for images that do not belong, where the model can.
        other_values (`Mapping`, *optional*):
            Images that have a label which the model does not know, by attribute, see `images_of_other_values`: that
            label is not missing.
        progress: Called with the name of a stage, its steps done and in all.

    Raises:
        ValueError: a single fold, fewer images than folds, or splits that are streamed.
    """
    if streamed := [split for split, part in splits.items() if not isinstance(part, AttributeTensors)]:
        raise ValueError(f"an audit compares all images with each other: do not stream the split {streamed[0]!r}")
    images, labels = (torch.cat([getattr(part, name) for part in splits.values()]) for name in ("images", "labels"))
    places = [
        (split, row, part.places[row] if part.places else "")
        for split, part in splits.items()
        for row in range(len(part))
    ]
    if num_folds < 0 or num_folds == 1 or num_folds > len(images):
        raise ValueError(f"{num_folds} folds of {len(images)} images: take 2 or more, and at most one an image")
    if num_folds:
        probabilities = cross_fit(model, images, labels, num_folds, num_epochs, progress)
    else:
        probabilities = conditional_probabilities(model, images, labels, progress)
    config = model.config
    missing = [
        each
        for each in missing_labels(probabilities, labels, config.num_values)
        if _file(places[each[1]][2]) not in other_values.get(config.attributes[each[2]], ())
    ]
    rows = [*label_issues(probabilities, labels), *missing]
    suspects = []
    for issue, i, k, label, score in rows:
        name, values = config.attributes[k], config.named_values[config.attributes[k]]
        given = value_of(int(labels[i, k]), values)
        suspects.append(
            _suspect(places[i], issue, score, name, "" if given is None else given, value_of(label, values))
        )
    for i, j, error in near_duplicates(images):
        suspects.append(_suspect(places[i], "near_duplicate", error, other=places[j]))
    if outliers and model.has_outlier_score:
        scores = outlier_scores(model, images, progress)
        for i in sorted((scores > OUTLIER).nonzero()[:, 0].tolist(), key=lambda i: -scores[i]):
            suspects.append(_suspect(places[i], "outlier", float(scores[i])))
    numbers = prediction_metrics(
        probabilities.numpy(), labels.numpy(), config.attributes, values=config.attribute_values
    )
    sizes = {split: len(part) for split, part in splits.items()}
    return Audit(suspects, rare_combinations(labels, config), numbers, num_folds > 0, sizes)


@torch.no_grad()
def conditional_probabilities(
    model: JemModel, images: torch.Tensor, labels: torch.Tensor, progress: Callable = lambda *_: None
) -> torch.Tensor:
    """
    `p(y_k | x, y_others)` (N, K, V) of uint8 images (N, C, H, W) and labels (N, K). Of labels that are missing among
    the others the most probable ones are taken.
    """
    found = []
    for done, (batch, known) in enumerate(zip(images.split(250), labels.split(250))):
        distribution = model.label_distribution(model.encode(to_pixels(batch.to(model.device))))
        known = known.to(model.device)
        guessed = distribution.marginal_logits(known)[0].argmax(-1)
        logits = distribution.conditional_logits(torch.where(known >= 0, known, guessed))
        found.append(logits.softmax(-1).cpu())
        progress("labels", done + 1, -(-len(images) // 250))
    return torch.cat(found)


def cross_fit(
    model: JemModel,
    images: torch.Tensor,
    labels: torch.Tensor,
    num_folds: int,
    num_epochs: int = 6,
    progress: Callable = lambda *_: None,
) -> torch.Tensor:
    """As [`conditional_probabilities`], each image by a classifier of the model's network that never saw it."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    probabilities = torch.empty(*labels.shape, max(model.config.num_values))
    for fold, held_out in enumerate(order.tensor_split(num_folds)):
        kept = torch.ones(len(images), dtype=torch.bool)
        kept[held_out] = False
        part = AttributeTensors(images[kept], labels[kept], list(model.config.attributes))
        untrained = JemModel(model.config)
        if model.autoencoder is not None:
            untrained.autoencoder.load_state_dict(model.autoencoder.state_dict())

        def report(done, total, fold=fold):
            progress(f"fold {fold + 1} of {num_folds}", done, total)

        classifier = train_classifier(untrained, part, report, num_train_epochs=num_epochs).to(model.device)
        probabilities[held_out] = conditional_probabilities(classifier, images[held_out], labels[held_out])
    return probabilities


def label_issues(probabilities: torch.Tensor, labels: torch.Tensor) -> list[tuple]:
    """
    ("label", image, attribute, likely label, p(given label)) of labels that are probably wrong, least likely first.

    Such are those for which another value is at least as probable as it is, in the mean, where it is the label
    (confident learning, Northcutt, Jiang and Chuang 2021, arXiv 1911.00068), and more probable than the given one.
    """
    found = []
    for k in range(labels.shape[1]):
        rows = (labels[:, k] >= 0).nonzero()[:, 0]
        p, given = probabilities[rows, k], labels[rows, k]
        usual = torch.stack(
            [p[given == v, v].mean() if (given == v).any() else torch.tensor(torch.inf) for v in range(p.shape[1])]
        )
        confident = p.masked_fill(p < usual, -1.0)
        likely = confident.argmax(1)
        of_given = p.gather(1, given[:, None])[:, 0]
        wrong = (confident.amax(1) > of_given) & (likely != given)
        found += [
            ("label", int(rows[i]), k, int(likely[i]), float(of_given[i])) for i in wrong.nonzero()[:, 0].tolist()
        ]
    return sorted(found, key=lambda each: each[-1])


def missing_labels(probabilities: torch.Tensor, labels: torch.Tensor, num_values: Sequence[int]) -> list[tuple]:
    """("missing", image, attribute, likely label, its probability) of those that can be told, surest first."""
    best, likely = probabilities.max(-1)
    chance = 1 / torch.tensor(num_values)
    places = ((labels < 0) & (best >= chance + MIN_CERTAINTY * (1 - chance))).nonzero().tolist()
    found = [("missing", i, k, int(likely[i, k]), float(best[i, k])) for i, k in places]
    return sorted(found, key=lambda each: -each[-1])


def outlier_scores(model: JemModel, images: torch.Tensor, progress: Callable = lambda *_: None) -> torch.Tensor:
    """(N,) of uint8 images (N, C, H, W)."""
    scores = []
    for batch in images.split(64):
        scores.append(model.outlier_score(to_pixels(batch.to(model.device))).cpu())
        progress("outliers", len(scores), -(-len(images) // 64))
    return torch.cat(scores)


def rare_combinations(labels: torch.Tensor, config: Any) -> list[dict]:
    """Pairs of values that hardly any image has, see [`Audit`]."""
    found = []
    for a, b in combinations(range(len(config.attributes)), 2):
        present = labels[(labels[:, [a, b]] >= 0).all(1)][:, [a, b]]
        counts = np.zeros((config.num_values[a], config.num_values[b]), dtype=int)
        np.add.at(counts, tuple(present.T.numpy()), 1)
        expected = np.outer(counts.sum(1), counts.sum(0)) / max(1, len(present))
        for v, w in zip(*((counts < RARE) & (expected >= RARE)).nonzero()):
            terms = {
                config.attributes[k]: str(value_of(int(u), config.named_values[config.attributes[k]]))
                for k, u in ((a, v), (b, w))
            }
            found.append(
                {"combination": terms, "count": int(counts[v, w]), "expected": round(float(expected[v, w]), 1)}
            )
    return sorted(found, key=lambda each: -each["expected"])


def _file(place: str) -> str:
    """Of a place of `AttributeTensors`; empty where the image is in none."""
    return "" if place.startswith("row ") else place


def _suspect(place, issue, score, attribute="", given="", predicted="", other=None) -> dict:
    elsewhere = "" if other is None else f"{other[0]}/{other[1]}"
    return dict(zip(COLUMNS, (*place, issue, attribute, str(given), str(predicted), score, elsewhere)))
