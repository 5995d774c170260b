"""What is asked of the contenders: six trials, each a function of them and of data that gives numbers by name."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from contenders import Contender, train_contender, with_calibrated
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur, pil_to_tensor, to_pil_image

from jem_hf import AttributeTensors, JemModel
from jem_hf.evaluation.generation import draw
from jem_hf.evaluation.judges import Oracle
from jem_hf.evaluation.outliers import outlier_sets
from jem_hf.evaluation.prediction import zero_shot_recognition
from jem_hf.metrics.prediction import prediction_metrics
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.models.outliers_jem import OutlierScore, image_scores

METRICS = ("accuracy", "ap", "nll", "ece")
FRACTIONS = (0.01, 0.03, 0.1, 0.3, 1.0)
KNOWN = (0, 5, 10, 15, 20)
GUIDANCE = (1.0, 2.0, 4.0)
NUM_PGD_STEPS = 20


@dataclass
class Data:
    """The splits, images of something else (M, C, H, W) in [-1, 1], and the size of the trials."""

    train: AttributeTensors
    validation: AttributeTensors
    test: AttributeTensors
    novel: AttributeTensors | None
    others: dict[str, torch.Tensor]
    num_images: int


def metrics(logits: torch.Tensor, labels: torch.Tensor, attributes: list[str]) -> dict[str, float]:
    found = prediction_metrics(logits.softmax(-1).double().numpy(), labels.numpy(), attributes)
    return {name: found[name] for name in METRICS}


# 1. Few labels


def few_labels(base: JemModel, data: Data, num_steps: int, seed: int, fractions=FRACTIONS) -> dict:
    """Metrics by what is labelled ("labels": any, "images": all of some), by share, of joint energy and classifier."""
    report: dict[str, dict] = {}
    for kind in ("labels", "images"):
        for share in fractions:
            generator = torch.Generator().manual_seed(seed)
            shape = data.train.labels.shape if kind == "labels" else (len(data.train), 1)
            kept = torch.rand(shape, generator=generator) < share
            part = AttributeTensors(data.train.images, data.train.labels.where(kept, -1), data.train.attributes)
            known = torch.rand(data.validation.labels.shape[0], shape[1], generator=generator) < share
            chosen_by = AttributeTensors(
                data.validation.images, data.validation.labels.where(known, -1), part.attributes
            )
            names = ("joint", "classifier")
            trained = {name: train_contender(name, base, part, chosen_by, num_steps, seed) for name in names}
            for name, contender in with_calibrated(trained, chosen_by).items():
                found = metrics(contender.predict(data.test.images), data.test.labels, part.attributes)
                report.setdefault(kind, {}).setdefault(name, {})[str(share)] = found
    return report


# 2. Shift


def _jpeg(x: torch.Tensor, quality: int) -> torch.Tensor:
    images = []
    for image in ((x + 1) * 127.5).round().to(torch.uint8):
        buffer = io.BytesIO()
        to_pil_image(image).save(buffer, "JPEG", quality=quality)
        images.append(pil_to_tensor(Image.open(buffer)))
    return to_pixels(torch.stack(images))


def _occluded(x: torch.Tensor, share: float) -> torch.Tensor:
    size = round(share * x.shape[-1])
    top = (x.shape[-1] - size) // 2
    x = x.clone()
    x[..., top : top + size, top : top + size] = 0
    return x


def _noisy(x: torch.Tensor, scale: float) -> torch.Tensor:
    return (x + scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


SHIFTS: dict[str, tuple[Callable, tuple]] = {  # five strengths each, after Hendrycks and Dietterich 2019
    "blurred": (lambda x, s: gaussian_blur(x, [2 * int(2.5 * s + 0.5) + 1] * 2, [s, s]), (0.5, 1.0, 1.5, 2.0, 3.0)),
    "noisy": (_noisy, (0.05, 0.1, 0.2, 0.3, 0.5)),
    "darker": (lambda x, factor: (x + 1) * factor - 1, (0.8, 0.65, 0.5, 0.35, 0.2)),
    "JPEG": (_jpeg, (50, 30, 20, 10, 5)),
    "occluded": (_occluded, (0.15, 0.25, 0.35, 0.45, 0.55)),
}


def shift(contenders: dict[str, Contender], data: Data) -> dict:
    """Metrics by contender, shift and strength (0: none), and the area under risk and coverage over all of them."""
    test = data.test.sample(data.num_images)
    report: dict[str, dict] = {}
    for name, contender in contenders.items():
        errors, confidence, log_p = [], [], []
        for kind, (change, strengths) in SHIFTS.items():
            for setting in (None, *strengths):
                x = to_pixels(test.images) if setting is None else change(to_pixels(test.images), setting)
                logits = contender.predict(x)
                found = metrics(logits, test.labels, test.attributes)
                report.setdefault("strengths", {}).setdefault(name, {}).setdefault(kind, []).append(found)
                wrong = (logits.argmax(-1) != test.labels) & (test.labels >= 0)
                errors.append(wrong.sum(1) / (test.labels >= 0).sum(1).clamp(min=1))
                confidence.append(logits.softmax(-1).amax(-1).mean(1))
                log_p.append(_log_p(contender.models[0], x))
        risk = torch.cat(errors)
        signals = {"maximum probability": torch.cat(confidence), "log p(x)": torch.cat(log_p)}
        report.setdefault("aurc", {})[name] = {by: _aurc(risk, signal) for by, signal in signals.items()}
        report["aurc"][name]["at best"] = _aurc(risk, -risk)
    return report


def _aurc(risk: torch.Tensor, signal: torch.Tensor) -> float:
    """Mean over coverages of the mean error of what is covered (Geifman et al. 2019), the surest first."""
    ordered = risk[signal.argsort(descending=True)]
    return (ordered.cumsum(0) / torch.arange(1, len(risk) + 1)).mean().item()


@torch.no_grad()
def _log_p(model: JemModel, x: torch.Tensor) -> torch.Tensor:
    """`log p~(x)` (N,); of a classifier its free energy, less a sign (Liu et al. 2020)."""
    return torch.cat([model.log_marginal(part) for part in x.split(250)])


# 3. Outliers


def outliers(contenders: dict[str, Contender], data: Data) -> dict:
    """AUROC and FPR at 95% by contender, signal and kind of outlier."""
    real = to_pixels(data.test.sample(data.num_images).images)
    sets = {name: change(real) for name, change in outlier_sets(real).items()} | data.others
    report: dict[str, dict] = {}
    for name, contender in contenders.items():
        of_real = _signals(contender, real, data.train.sample(4 * data.num_images).images)
        for kind, x in sets.items():
            found = _signals(contender, x, data.train.sample(4 * data.num_images).images)
            for signal, values in found.items():
                report.setdefault(name, {}).setdefault(signal, {})[kind] = _separation(of_real[signal], values)
    return report


def _signals(contender: Contender, x: torch.Tensor, train: torch.Tensor) -> dict[str, torch.Tensor]:
    """What grows with strangeness, (N,) by name."""
    model = contender.models[0]
    if not hasattr(model, "evidence"):  # statistics of the training images, once a model
        scores = torch.cat([image_scores(model, to_pixels(part)) for part in train.split(250)])
        model.evidence = OutlierScore(scores.shape[1])
        model.evidence.fit(scores)
    scores = torch.cat([image_scores(model, part) for part in x.split(250)])
    return {
        "-maximum probability": -contender.predict(x).softmax(-1).amax(-1).mean(1),
        "-log p(x)": -scores[:, 0],
        "norm of the gradient": scores[:, 1],
        "typicality": (scores[:, 0] - model.evidence.mean[0]).abs(),
        "Mahalanobis of all": model.evidence.distance(scores),
    }


def _separation(of_real: torch.Tensor, of_outliers: torch.Tensor) -> dict[str, float]:
    truth = np.repeat([0, 1], [len(of_real), len(of_outliers)])
    values = torch.cat([of_real, of_outliers]).detach().numpy()
    passed = of_outliers <= of_real.quantile(0.95)
    return {"auroc": float(roc_auc_score(truth, values)), "fpr95": passed.float().mean().item()}


# 4. Known labels


def known_labels(contenders: dict[str, Contender], data: Data) -> dict:
    """
    Accuracy of the labels that are not known, by contender and number of known ones.

    Beside them gradient-boosted trees on the first one's probabilities and the known labels, fitted to validation.
    """
    test, validation = data.test.sample(data.num_images), data.validation
    num_attributes = test.labels.shape[1]
    numbers = [number for number in KNOWN if number < num_attributes]
    report: dict[str, dict] = {name: {} for name in (*contenders, "boosted trees")}
    p = {split: next(iter(contenders.values())).predict(each.images).softmax(-1)[..., 1:].flatten(1)
         for split, each in (("test", test), ("validation", validation))}  # fmt: skip
    for number in numbers:
        rows = _some(test.labels, number, seed=number)
        asked = (test.labels >= 0) & (rows < 0)
        for name, contender in contenders.items():
            model = contender.models[0]
            parts = zip(to_pixels(test.images).split(250), rows.split(250), strict=True)
            with torch.no_grad():
                guess = torch.cat([model.predict_proba(x, labels).argmax(-1) for x, labels in parts])
            report[name][str(number)] = (guess == test.labels)[asked].float().mean().item()
        known = _some(validation.labels, number, seed=number + 1)
        right = []
        for k in range(num_attributes):
            to_fit = (validation.labels[:, k] >= 0) & (known[:, k] < 0)
            if not asked[:, k].any():
                continue
            truth, seen = test.labels[asked[:, k], k].numpy(), validation.labels[to_fit, k]
            if len(seen.unique()) < 2:  # nothing to learn
                right.append(truth == (seen.mode().values.item() if len(seen) else 0))
                continue
            trees = HistGradientBoostingClassifier(max_iter=60, learning_rate=0.1, max_depth=3, random_state=0)
            trees.fit(_features(p["validation"], known)[to_fit], seen)
            guess = trees.predict(_features(p["test"], rows)[asked[:, k]])
            right.append(guess == truth)
        report["boosted trees"][str(number)] = float(np.concatenate(right).mean())
    return report


def _some(labels: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Labels (N, K) of which `number` a row are known, the others -1."""
    rank = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    return labels.where(rank < number, -1)


def _features(p: torch.Tensor, known: torch.Tensor) -> np.ndarray:
    return torch.cat([p, known], dim=1).numpy()


# 5. Combinations never seen


def combinations(contenders: dict[str, Contender], data: Data, held_out: torch.Tensor, oracle: Oracle) -> dict:
    """
    Of rows `held_out` (C, K): how often drawn images have all of one, by guidance; how often classifiers name it.

    "seen" is how often its rarest attribute is in the training split.
    """
    report: dict[str, dict] = {"recognised": {}, "drawn": {}}
    for name, contender in contenders.items():
        found = zero_shot_recognition(contender.predict(data.novel.images), data.novel.labels, held_out)
        report["recognised"][name] = found and found["accuracy"]
    real = oracle.predict(data.novel.images)
    for row in held_out:
        k = (row >= 0).nonzero()[:, 0]
        shown = (data.novel.labels[:, k] == row[k]).all(1)
        entry = {
            "seen": min(int((data.train.labels[:, j] == row[j]).sum()) for j in k),
            "photographs": (real[shown][:, k] == row[k]).all(1).float().mean().item() if shown.any() else None,
        }
        report["drawn"][" & ".join(f"{data.train.attributes[j]}={row[j]}" for j in k)] = entry
        for name in ("joint", "joint, then CD"):
            if name in contenders:
                entry[name] = {}
                for scale in GUIDANCE:
                    model = contenders[name].models[0].eval()
                    model.config.guidance_scale = scale
                    images = draw(model, row.expand(data.num_images // 8, -1))
                    right = (oracle.predict(images)[:, k] == row[k]).all(1)
                    entry[name][str(scale)] = right.float().mean().item()
    return report


# 6. Attacks


def attacks(contenders: dict[str, Contender], data: Data) -> dict:
    """Accuracy under projected gradient descent (Madry et al. 2018) by contender and size of the attack, in 255ths."""
    test = data.test.sample(data.num_images // 2)
    x, labels = to_pixels(test.images), test.labels
    report: dict[str, dict] = {}
    for name, contender in contenders.items():
        for size in (0, 2, 4):
            attacked = torch.cat([_attack(contender, *pair, 2 * size / 255)
                                  for pair in zip(x.split(64), labels.split(64), strict=True)])  # fmt: skip
            guess = contender.predict(attacked).argmax(-1)
            report.setdefault(name, {})[str(size)] = (guess == labels)[labels >= 0].float().mean().item()
    return report


def _attack(contender: Contender, x: torch.Tensor, labels: torch.Tensor, size: float) -> torch.Tensor:
    """Images within `size` of x in every pixel, at which the labels are least probable."""
    if not size:
        return x
    moved = x
    for _ in range(NUM_PGD_STEPS):
        moved = moved.detach().requires_grad_(True)
        loss = F.cross_entropy(contender.logits(moved).flatten(0, 1), labels.flatten(), ignore_index=-1)
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = moved + 2.5 * size / NUM_PGD_STEPS * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, x - size), x + size).clamp(-1, 1)
    return moved.detach()
