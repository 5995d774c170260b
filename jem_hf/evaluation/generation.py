"""Generation: drawn images as an oracle, a feature network, the training images and a classifier see them."""

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from accelerate.utils import reduce
from torchvision.transforms.v2.functional import gaussian_blur

from ..data.tensors import AttributeTensors
from ..metrics.distances import frechet_distance, kernel_distance, mean_pairwise_distances, nearest_distance
from ..metrics.prediction import prediction_metrics, request_metrics
from ..models.image_processing_jem import to_pixels
from ..models.modeling_jem import JemModel
from ..training.devices import join_processes
from .judges import FeatureNetwork, Oracle, load_oracle, no_progress
from .requests import matching_rows, one_row_each

NUM_SHOWN = 16
Progress = Callable[[str, int, int], None]  # called with a stage, its steps done and its steps in all


def draw(
    model: JemModel,
    requests: torch.Tensor,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = no_progress,
) -> torch.Tensor:
    """
    One image (N, C, H, W), in [-1, 1], for each of the requests (N, K), -1 where open, by the model's defaults.

    Processes share the batches, each with noise of its own, and all get all images.
    """
    config, process = model.config, join_processes()
    generator = torch.Generator(model.device).manual_seed(seed + process.process_index)
    images = torch.zeros(len(requests), config.num_channels, config.image_size, config.image_size, device=model.device)
    mine = torch.arange(len(requests)).split(batch_size)[process.process_index :: process.num_processes]
    for done, rows in enumerate(mine, 1):
        images[rows] = model.generate(requests[rows], generator=generator)[0].clamp(-1, 1)
        progress(done * len(requests) // len(mine), len(requests))
    return reduce(images, "sum").cpu()


@torch.no_grad()
def reconstruct(model: JemModel, images: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
    """Images (N, C, H, W) in [-1, 1] as a model's autoencoder gives them back."""
    parts = (model.decode(model.encode(batch.to(model.device))) for batch in images.split(batch_size))
    return torch.cat([part.clamp(-1, 1).cpu() for part in parts])


def judge_requests(
    predicted: torch.Tensor,
    requests: torch.Tensor,
    real_predicted: torch.Tensor,
    real_labels: torch.Tensor,
    attributes: list[str],
) -> dict:
    """
    How far an oracle finds requests met: agreement over requested attributes, and share of images with all right.

    Args:
        predicted, requests (`torch.Tensor` of shape (N, K)): What the oracle sees in images drawn for the requests.
        real_predicted, real_labels (`torch.Tensor` of shape (M, K)): The same of real images that it does not know.

    Returns:
        The numbers of [`request_metrics`], the same of real images that carry the requested labels (`ceiling`,
        `ceiling_all_right`) and of real images taken without regard to them (`floor`, `floor_all_right`), and

        - share: (agreement - floor) / (ceiling - floor), all_right_of_ceiling: all_right / ceiling_all_right; None
          where there is nothing to divide by;
        - per_attribute: where every request is complete, for each name its `agreement`, `ceiling` and `floor`.
    """
    rows, which = matching_rows(real_labels, requests)
    shuffled = torch.randint(len(real_labels), (len(requests),), generator=torch.Generator().manual_seed(0))
    bounds = {"floor": (real_predicted[shuffled], requests), "ceiling": (real_predicted[rows], requests[which])}
    report = request_metrics(predicted, requests) | {"share": None, "all_right_of_ceiling": None}
    for name, (found, asked) in bounds.items():
        metrics = request_metrics(found, asked) if len(asked) else {"agreement": None, "all_right": None}
        report |= {name: metrics["agreement"], f"{name}_all_right": metrics["all_right"]}
    if report["ceiling"] is not None and report["ceiling"] > report["floor"]:
        report["share"] = (report["agreement"] - report["floor"]) / (report["ceiling"] - report["floor"])
    if report["ceiling_all_right"]:
        report["all_right_of_ceiling"] = report["all_right"] / report["ceiling_all_right"]
    if (requests >= 0).all():
        met = {name: found == asked for name, (found, asked) in bounds.items() if len(asked)}
        met["agreement"] = predicted == requests
        report["per_attribute"] = {
            attribute: {name: met[name][:, k].float().mean().item() for name in met}
            for k, attribute in enumerate(attributes)
        }
    return report


def set_distances(
    images: torch.Tensor,
    real_images: torch.Tensor,
    network: FeatureNetwork,
    train_features: torch.Tensor,
    model: JemModel | None = None,
) -> dict[str, dict[str, float | None]]:
    """
    How far drawn images are, as a set, from the training images.

    Args:
        real_images (`torch.Tensor` of shape (M, C, H, W)): uint8, test images that show the same; M near N.
        train_features (`torch.Tensor` of shape (L, D)): Of the training images.
        model ([`JemModel`], *optional*): What has drawn the images.

    Returns:
        "frechet_distance" and "kernel_distance", each of the "samples", of the "real" images, of these "blurred" (a
        Gaussian of one pixel), and "reconstructed" where the model has an autoencoder; None for fewer than two images.
    """
    real_images = to_pixels(real_images)
    sets = {"samples": images, "real": real_images, "blurred": gaussian_blur(real_images, [5, 5], [1.0, 1.0])}
    if model is not None and model.autoencoder is not None:
        sets["reconstructed"] = reconstruct(model, real_images)
    features = {name: network.extract(each) for name, each in sets.items()}
    return {
        distance.__name__: {name: distance(each, train_features) for name, each in features.items()}
        for distance in (frechet_distance, kernel_distance)
    }


def request_diversity(
    images: torch.Tensor,
    groups: torch.Tensor,
    real_images: torch.Tensor,
    real_groups: torch.Tensor,
    network: FeatureNetwork,
) -> dict[str, dict[str, float]] | None:
    """
    How much the images of one request differ: the mean distance between two of them, averaged over requests.

    Args:
        images, real_images (`torch.Tensor` of shape (N, C, H, W)): Drawn for requests, and real that carry the labels.
        groups, real_groups (`torch.Tensor` of shape (N,)): Which request that is.

    Returns:
        For "features" and "pixels" (root mean square, black to white is 1) the number of the "samples" and of the
        "real" images, over the requests that have two of both; None where there is none.
    """
    report = {}
    for kind, points in {"features": network.extract, "pixels": _pixel_rows}.items():
        spreads = {
            "samples": mean_pairwise_distances(points(images), groups),
            "real": mean_pairwise_distances(points(real_images), real_groups),
        }
        common = spreads["samples"].keys() & spreads["real"].keys()
        if not common:
            return None
        report[kind] = {name: float(np.mean([of[g] for g in common])) for name, of in spreads.items()}
    return report


def classification_accuracy_score(
    model: JemModel,
    train: AttributeTensors,
    test: AttributeTensors,
    num: int,
    *,
    num_epochs: int = 6,
    cache_dir: str | os.PathLike | None = None,
    progress: Progress = no_progress,
) -> dict:
    """
    How well a classifier trained on drawn images reads real ones (Ravuri and Vinyals 2019, "Classification Accuracy
    Score for Conditional Generative Models").

    The classifier has the oracle's architecture and another seed; the images are drawn for the labels of `num`
    training images, and beside it stands the same classifier trained on those images themselves.

    Returns:
        "accuracy" and "ap" on the test images under "samples" and "real", and "num_images".
    """
    settings = dict(seed=5678, num_epochs=num_epochs, cache_dir=cache_dir)
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings["seed"]))[:num]
    real = train.subset(rows)
    images = draw(model, real.labels, seed=settings["seed"], progress=partial(progress, "drawing a training set"))
    samples = AttributeTensors(((images + 1) * 127.5).round().to(torch.uint8), real.labels, real.attributes)
    report = {"num_images": len(real)}
    for name, part in {"samples": samples, "real": real}.items():
        settings["progress"] = partial(progress, f"classifier of {name}")
        with join_processes().main_process_first():
            classifier = load_oracle(part, model.config.num_values, **settings)
        probabilities = classifier.predict_proba(test.images).numpy()
        metrics = prediction_metrics(probabilities, test.labels.numpy(), model.config.attributes)
        report[name] = {key: metrics[key] for key in ("accuracy", "ap")}
    return report


def judge_images(
    model: JemModel,
    train: AttributeTensors,
    real: dict[str, AttributeTensors],
    requests: dict[str, tuple[torch.Tensor, str]],
    oracle: Oracle,
    network: FeatureNetwork,
    progress: Progress = no_progress,
) -> tuple[dict, dict]:
    """
    Draw all requests and judge the images.

    Args:
        real (`dict`): `AttributeTensors` of the splits "test" and, where there is one, "novel".
        requests (`dict`): See [`requests_by_kind`].

    Returns:
        report: for each kind [`judge_requests`]; for "full" and "seen" [`set_distances`] too, for sparse kinds
            "diversity" from [`request_diversity`]; "nearest_training_image": the median distance of "samples" and
            of "real" test images.
        pictures: "samples": images and requests of each kind, and "nearest": images and their nearest training images.
    """
    predicted = {name: oracle.predict(split.images) for name, split in real.items()}
    train_features = network.extract(train.images)
    report, pictures = {}, {"samples": {}}
    for kind, (rows, split) in requests.items():
        images = draw(model, rows, progress=partial(progress, f"drawing {kind}"))
        pictures["samples"][kind] = (images, rows)
        labels = real[split].labels
        report[kind] = judge_requests(oracle.predict(images), rows, predicted[split], labels, model.config.attributes)
        if split == "test":
            beside = real[split].images[one_row_each(labels, rows)]
            report[kind] |= set_distances(images, beside, network, train_features, model)
        if (rows < 0).any():
            distinct, groups = rows.unique(dim=0, return_inverse=True)
            matches, real_groups = matching_rows(labels, distinct)
            matched = real[split].images[matches]
            report[kind]["diversity"] = request_diversity(images, groups, matched, real_groups, network)
        if kind == "full":
            distance, index = nearest_distance(images, train.images)
            real_distance = nearest_distance(real["test"].images, train.images)[0]
            medians = {"samples": float(np.median(distance)), "real": float(np.median(real_distance))}
            report["nearest_training_image"] = medians
            pictures["nearest"] = (images[:NUM_SHOWN], train.images[index[:NUM_SHOWN]])
    return report, pictures


def _pixel_rows(images: torch.Tensor) -> torch.Tensor:
    """Images as rows whose Euclidean distance is the root mean square over pixels, black to white being 1."""
    rows = to_pixels(images).flatten(1)
    return rows / (2 * rows.shape[1] ** 0.5)
