"""How good a model is: its prediction beside classifiers, its images as others see them, its energy."""

import os
from functools import partial

import torch

from ..data.tensors import AttributeTensors
from ..models.modeling_jem import JemModel
from ..models.requests_jem import format_request
from ..training.devices import join_processes
from ..training.splits import validation_part
from .baseline import load_classifier, untrained_classifiers
from .generation import Progress, classification_accuracy_score, judge_images
from .judges import load_feature_network, load_oracle, no_progress
from .likelihood import estimate_likelihood
from .outliers import energy_quantiles, outlier_detection
from .prediction import compare_prediction, predict, zero_shot_recognition
from .requests import held_out_combinations, requests_by_kind


def evaluate(
    model: JemModel,
    splits: dict[str, AttributeTensors],
    *,
    split: str = "test",
    prediction_only: bool = False,
    baselines: bool = True,
    bits_per_dimension: bool = False,
    num_images: int = 512,
    num_cas: int | None = None,
    num_resamples: int = 200,
    num_chains: int = 16,
    num_temperatures: int = 200,
    classifier_epochs: int = 6,
    oracle_epochs: int = 6,
    feature_epochs: int = 4,
    cache_dir: str | os.PathLike | None = None,
    progress: Progress = no_progress,
) -> tuple[dict, dict]:
    """
    The whole trial of a model. Processes that torchrun started share the drawing of images; all get the report.

    Args:
        splits (`dict`): `AttributeTensors` by name: `split`, "train" (for classifier, oracle and feature network;
            without it there are no baselines, and only prediction is measured), and where there are such "validation"
            or "valid" (to calibrate the classifier; else a tenth of "train") and "novel" (images with combinations
            kept out of training; the oracle learns from half of them).
        prediction_only (`bool`): No generation, no energy.
        baselines (`bool`): Train classifiers to compare prediction with, which takes the longest.
        bits_per_dimension (`bool`): Estimate the likelihood too, by `num_chains` over `num_temperatures`.
        num_images (`int`): Images drawn for each kind of request.
        num_cas (`int`, *optional*): Images drawn for the classification accuracy score, by default four times
            `num_images`, at most as many as there are training images; 0 leaves it out.
        num_resamples (`int`): Of the bootstrap.
        classifier_epochs, oracle_epochs, feature_epochs (`int`): Passes over the data in the training of classifier,
            oracle (and the classifiers of the classification accuracy score) and feature network.
        cache_dir (`str`, *optional*): Where trained helpers are kept, by default $JEM_HF_CACHE, else ~/.cache/jem_hf.
        progress: Called with the name of a stage, its steps done and its steps in all.

    Returns:
        report: "num_images", "num_parameters"; "prediction", "baselines" and "comparison" of [`compare_prediction`],
            or "left_out" (what, and why); where combinations were held out "zero_shot": [`zero_shot_recognition`] of
            the model, and the accuracy of the "classifier"; unless `prediction_only` "oracle", "generation"
            ([`judge_images`], and [`classification_accuracy_score`] under that name), "energy"
            ([`outlier_detection`]) and "test_energy_quantiles" ([`energy_quantiles`]); with `bits_per_dimension`
            "likelihood" ([`estimate_likelihood`]). None where a number is not defined.
        pictures: what they are made of: `reliability` curves and those of [`judge_images`].

    Raises:
        ValueError: there is no such split, or no training split for those who judge the images.
    """
    if split not in splits:
        raise ValueError(f"no split {split!r}; there are {', '.join(splits)} (val and dev are called validation)")
    model.eval()
    config, test = model.config, splits[split]
    known = {name: each for name, each in splits.items() if name != split}
    train, novel = known.get("train"), known.get("novel")
    if train is None and not prediction_only:
        raise ValueError(
            "oracle and feature network, which judge drawn images, learn from a training split, and there is none: "
            "add one beside the test split, or leave the images out with prediction_only (--prediction-only)"
        )
    report = {"num_images": len(test), "num_parameters": model.num_parameters()}
    classifiers, validation = {}, None
    if train is None or not baselines:
        reason = "not asked for" if train is not None else "they need a training split, and there is none"
        report["left_out"] = {"baselines": reason}
    else:
        part, validation = validation_part(known)
        networks = untrained_classifiers(model)
        if part is not train:  # the scalings take a tenth; the other classifiers have all that the model had
            networks["scaled_classifier"] = untrained_classifiers(model)["classifier"]
        for name, untrained in networks.items():
            stage = partial(progress, f"baseline {name.replace('_', ' ')}")
            seen = part if name == "scaled_classifier" else train
            classifiers[name] = load_classifier(untrained, seen, classifier_epochs, cache_dir, stage).to(model.device)
    comparison, curves = compare_prediction(model, classifiers, validation, test, num_resamples)
    report |= comparison
    pictures = {"reliability": curves}
    held_out = torch.empty(0, len(config.attributes), dtype=torch.long)
    if novel is not None and (train is not None or config.novel_combinations):
        held_out = held_out_combinations(config, None if train is None else train.labels, novel.labels)
        report |= _zero_shot(model, classifiers.get("classifier"), novel, held_out)
    if bits_per_dimension:
        settings = dict(num_chains=num_chains, num_temperatures=num_temperatures)
        settings["progress"] = partial(progress, "likelihood")
        report["likelihood"] = estimate_likelihood(model, test.images, **settings)
    if prediction_only:
        return report, pictures

    judged, real = train, {"test": test}
    if novel is not None:
        judged, real["novel"] = with_half_of_novel(train, novel)
    settings = dict(cache_dir=cache_dir, num_values=config.num_values)
    with join_processes().main_process_first():  # it trains these, the others find them in the cache
        oracle = load_oracle(judged, num_epochs=oracle_epochs, progress=partial(progress, "oracle"), **settings)
        network = load_feature_network(
            train, num_epochs=feature_epochs, progress=partial(progress, "feature network"), **settings
        )
    right = (oracle.predict(test.images) == test.labels)[test.labels >= 0].float()
    report["oracle"] = {"accuracy": right.mean().item() if len(right) else None}
    requests = requests_by_kind(test.labels, None if novel is None else novel.labels, held_out, num_images)
    report["generation"], drawn = judge_images(model, train, real, requests, oracle, network, progress)
    pictures |= drawn
    num_cas = 4 * num_images if num_cas is None else num_cas
    if num_cas:
        settings = dict(num_epochs=oracle_epochs, cache_dir=cache_dir, progress=progress)
        score = classification_accuracy_score(model, train, test, num_cas, **settings)
        report["generation"]["classification_accuracy_score"] = score
    report["energy"] = outlier_detection(model, test.images)
    report["test_energy_quantiles"] = energy_quantiles(model, test.images)
    return report, pictures


def with_half_of_novel(train: AttributeTensors, novel: AttributeTensors) -> tuple[AttributeTensors, AttributeTensors]:
    """
    What an oracle learns from, and what is left of `novel`.

    The oracle must know the combinations that it is to see; the other half of their images sets the bounds.
    """
    order = torch.randperm(len(novel), generator=torch.Generator().manual_seed(0))
    half, rest = (novel.subset(rows) for rows in order.tensor_split([len(novel) // 2]))
    images, labels = torch.cat([train.images, half.images]), torch.cat([train.labels, half.labels])
    return AttributeTensors(images, labels, train.attributes), rest


def _zero_shot(model: JemModel, classifier: JemModel | None, novel, held_out: torch.Tensor) -> dict:
    """The section "zero_shot", empty where there is nothing to tell apart."""
    found = zero_shot_recognition(predict(model, novel.images)[0], novel.labels, held_out)
    if found is None:
        return {}
    if classifier is not None:
        baseline = zero_shot_recognition(predict(classifier, novel.images)[0], novel.labels, held_out)
        found["classifier"] = baseline["accuracy"]
    return {"zero_shot": {**found, "combinations": [format_request(row.tolist(), model.config) for row in held_out]}}
