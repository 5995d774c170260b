"""How good a model is: its prediction beside a classifier, its images as an oracle sees them, its energy."""

from collections.abc import Callable
from functools import partial
from itertools import combinations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2.functional import gaussian_blur

from .baseline import load_classifier
from .image_processing_jem import to_pixels
from .metrics import nearest_distance, prediction_metrics, reliability_curve, request_metrics
from .modeling_jem import JemModel
from .oracle import Oracle, load_oracle

Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all


@torch.no_grad()
def predict(model: JemModel, images: torch.Tensor, batch_size: int = 250) -> tuple[np.ndarray, np.ndarray]:
    """Attribute probabilities (N, K, V) and `log p~(x)` (N,) of images, uint8 or pixels in [-1, 1] (N, C, H, W)."""
    probabilities, log_p = [], []
    for batch in images.split(batch_size):
        output = model(to_pixels(batch.to(model.device)))
        probabilities.append(output.attribute_logits.softmax(-1).cpu())
        log_p.append(-output.energy.cpu())
    return torch.cat(probabilities).numpy(), torch.cat(log_p).numpy()


def draw(model: JemModel, requests: torch.Tensor, seed: int = 0, batch_size: int = 64, progress=None) -> torch.Tensor:
    """One image (N, C, H, W), in [-1, 1], for each of the requests (N, K), -1 where open, by the model's defaults."""
    generator = torch.Generator(model.device).manual_seed(seed)
    batches = []
    for rows in requests.split(batch_size):
        batches.append(model.generate(rows, generator=generator)[0].clamp(-1, 1).cpu())
        if progress is not None:
            progress(sum(map(len, batches)), len(requests))
    return torch.cat(batches)


def seen_requests(labels: torch.Tensor, num: int, seed: int = 0) -> torch.Tensor:
    """
    Requests (num, K) for two or three attributes, as they occur together in rows of `labels` (N, K).

    The first of them (of three, the first two) is one that the image has, where it has any: absence is easy to draw.
    """
    generator = torch.Generator().manual_seed(seed)
    requests = torch.full((num, labels.shape[1]), -1)
    labelled = ((labels >= 0).sum(1) >= 2).nonzero()[:, 0]
    for i, row in enumerate(labelled[torch.randint(len(labelled), (num,), generator=generator)].tolist()):
        size = 2 + i % 2
        order = torch.randperm(labels.shape[1], generator=generator)
        order = order[labels[row][order] >= 0]
        present = order[labels[row][order] > 0][: size - 1]
        others = order[~torch.isin(order, present)][: size - len(present)]
        chosen = torch.cat([present, others])
        requests[i, chosen] = labels[row, chosen]
    return requests


def novel_combinations(train: torch.Tensor, novel: torch.Tensor, min_count: int = 10) -> list[tuple[int, ...]]:
    """
    Pairs and triples of attributes found in `min_count` or more rows of `novel` (N, K) and together never in `train`.

    Attributes count as present where their label is above 0. Triples that hold such a pair are not listed again.
    """
    in_train, in_novel = (train > 0).float(), (novel > 0).float()
    pairs = ((in_train.T @ in_train == 0) & (in_novel.T @ in_novel >= min_count)).triu(1)
    found = [tuple(pair) for pair in pairs.nonzero().tolist()]
    for a, b, c in combinations(range(train.shape[1]), 3):
        if pairs[a, b] or pairs[a, c] or pairs[b, c]:
            continue
        triple = [a, b, c]
        if in_novel[:, triple].all(1).sum() >= min_count and not in_train[:, triple].all(1).any():
            found.append((a, b, c))
    return found


def evaluate_prediction(model: JemModel, images: torch.Tensor, labels: torch.Tensor) -> tuple[dict, dict]:
    """[`prediction_metrics`] of a model and its [`reliability_curve`]."""
    probabilities, _ = predict(model, images)
    metrics = prediction_metrics(probabilities, labels.numpy(), model.config.attributes)
    return metrics, reliability_curve(probabilities, labels.numpy())


def evaluate_requests(images: torch.Tensor, requests: torch.Tensor, real, oracle: Oracle) -> dict:
    """
    How far the oracle finds requests met: agreement over requested attributes, and share of images with all right.

    Args:
        images: (N, C, H, W), drawn for the requests.
        requests: (N, K), -1 where open.
        real: `AttributeTensors` of real images, none of which the oracle has seen.

    Returns:
        The numbers of [`request_metrics`], and the same of real images that carry the requested labels (`ceiling`,
        `ceiling_all_right`) and of real images taken without regard to them (`floor`, `floor_all_right`).
    """
    seen = oracle.predict(real.images)
    report = request_metrics(oracle.predict(images), requests)
    rows, which = _matching_rows(real.labels, requests)
    ceiling = request_metrics(seen[rows], requests[which]) if len(rows) else {"agreement": None, "all_right": None}
    shuffled = torch.randint(len(seen), (len(requests),), generator=torch.Generator().manual_seed(0))
    floor = request_metrics(seen[shuffled], requests)
    for name, bound in (("floor", floor), ("ceiling", ceiling)):
        report |= {name: bound["agreement"], f"{name}_all_right": bound["all_right"]}
    return report


def _matching_rows(
    labels: torch.Tensor, requests: torch.Tensor, num_each: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each request up to `num_each` real rows that carry its labels: indices of rows and of requests."""
    rows, which = [], []
    for i, request in enumerate(requests):
        match = ((labels == request) | (request < 0)).all(1).nonzero()[:num_each, 0]
        rows.append(match)
        which.append(torch.full_like(match, i))
    return torch.cat(rows), torch.cat(which)


def evaluate_energy(model: JemModel, images: torch.Tensor, seed: int = 0) -> dict:
    """AUROC with which `log p~(x)` tells real images (N, C, H, W), uint8, from what is made of them."""
    generator = torch.Generator().manual_seed(seed)
    real = to_pixels(images)
    outliers = {
        "noise": torch.rand(real.shape, generator=generator) * 2 - 1,
        "noisy": (real + 0.2 * torch.randn(real.shape, generator=generator)).clamp(-1, 1),
        "blurred": gaussian_blur(real, [5, 5], [1.0, 1.0]),
        "upside_down": real.flip(-2),
    }
    log_p_real = predict(model, real)[1]
    report = {}
    for name, x in outliers.items():
        scores = np.concatenate([log_p_real, predict(model, x)[1]])
        is_real = np.repeat([1, 0], len(real))
        report[name] = {"auroc": float(roc_auc_score(is_real, scores))}
    return report


def evaluate(
    model: JemModel,
    splits: dict,
    *,
    split: str = "test",
    prediction_only: bool = False,
    num_images: int = 512,
    classifier_epochs: int = 6,
    oracle_epochs: int = 6,
    cache_dir=None,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[dict, dict]:
    """
    The whole trial of a model.

    Args:
        splits: `AttributeTensors` by name: "train" (for baseline and oracle), `split`, and "novel" where there is one.
        prediction_only: no generation, no energy.
        num_images: images drawn for each kind of request.
        classifier_epochs, oracle_epochs: passes over the data in the training of baseline and oracle.
        progress: called with the name of a stage, its steps done and its steps in all.

    Returns:
        The report (DESIGN: `prediction`, `baselines`, `generation`, `energy`), and what pictures are made of:
        `reliability` curves and `samples`, pairs of images and requests.
    """
    train, test = splits["train"], splits[split]
    model.eval()
    prediction, curve = evaluate_prediction(model, test.images, test.labels)
    curves = {"joint model": (curve, prediction["ece"])}
    in_stage = partial(partial, progress)
    classifier = load_classifier(train, model.config, classifier_epochs, cache_dir, in_stage("baseline classifier"))
    baseline, curve = evaluate_prediction(classifier, test.images, test.labels)
    curves["classifier"] = (curve, baseline["ece"])
    report = {
        "num_images": len(test),
        "num_parameters": model.num_parameters(),
        "prediction": prediction,
        "baselines": {"classifier": baseline},
    }
    pictures = {"reliability": curves, "samples": {}}
    if prediction_only:
        return report, pictures
    oracle = load_oracle(
        train, model.config.num_values, num_epochs=oracle_epochs, cache_dir=cache_dir, progress=in_stage("oracle")
    )
    report["oracle"] = {
        "accuracy": float((oracle.predict(test.images) == test.labels)[test.labels >= 0].float().mean())
    }
    report["generation"] = {}
    for name, (requests, real) in _requests(train, test, splits.get("novel"), num_images).items():
        images = draw(model, requests, progress=in_stage(f"drawing {name}"))
        report["generation"][name] = evaluate_requests(images, requests, real, oracle)
        pictures["samples"][name] = (images, requests)
        if name == "full":
            report["generation"]["nearest_training_image"] = {
                "samples": float(np.median(nearest_distance(images, train.images)[0])),
                "real": float(np.median(nearest_distance(test.images, train.images)[0])),
            }
    report["energy"] = evaluate_energy(model, test.images)
    return report, pictures


def _requests(train, test, novel, num: int, num_each: int = 8) -> dict:
    """Requests (N, K) of each kind, sparse ones `num_each` times each, and the real images that set their bounds."""
    complete = test.labels[(test.labels >= 0).all(1)]
    num_sparse = max(1, num // num_each)
    requests = {"full": (complete[:num], test)} if len(complete) else {}
    requests["seen"] = (seen_requests(test.labels, num_sparse).repeat_interleave(num_each, 0), test)
    if novel is None:
        return requests
    complete = novel.labels[(novel.labels >= 0).all(1)]
    if len(complete):
        requests["full_novel"] = (complete[:num], novel)
    found = novel_combinations(train.labels, novel.labels)
    if found:
        rows = torch.full((num_sparse, novel.labels.shape[1]), -1)
        for i in range(num_sparse):
            rows[i, list(found[i % len(found)])] = 1
        requests["novel"] = (rows.repeat_interleave(num_each, 0), novel)
    return requests
