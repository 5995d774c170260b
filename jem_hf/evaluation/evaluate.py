"""How good a model is: its prediction beside classifiers, its images as others see them, its energy."""

from collections.abc import Callable
from functools import partial

import torch

from ..data.tensors import AttributeTensors
from ..models.modeling_jem import JemModel
from ..models.requests_jem import format_request
from ..training.processes import join_processes
from .baseline import load_classifier
from .energy import energy_quantiles, evaluate_energy
from .feature_network import load_feature_network
from .generation import classification_accuracy_score, evaluate_generation
from .oracle import load_oracle
from .prediction import (
    compare_prediction,
    predict,
    validation_part,
    zero_shot_recognition,
)
from .requests import held_out_combinations, requests_by_kind

Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all


def evaluate(
    model: JemModel,
    splits: dict,
    *,
    split: str = "test",
    prediction_only: bool = False,
    num_images: int = 512,
    num_cas: int | None = None,
    num_resamples: int = 200,
    classifier_epochs: int = 6,
    oracle_epochs: int = 6,
    feature_epochs: int = 4,
    cas_epochs: int | None = None,
    cache_dir=None,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[dict, dict]:
    """
    The whole trial of a model. Processes that torchrun started share the drawing of images; all get the report.

    Args:
        splits: `AttributeTensors` by name: "train" (for classifier, oracle and feature network), `split`, and where
            there are such "validation" or "valid" (to calibrate the classifier; else a tenth of "train") and "novel"
            (images with combinations kept out of training; the oracle learns from half of them).
        prediction_only: no generation, no energy.
        num_images: images drawn for each kind of request.
        num_cas: images drawn for the classification accuracy score, by default four times `num_images`, at most as
            many as there are training images; 0 leaves it out.
        num_resamples: of the bootstrap.
        classifier_epochs, oracle_epochs, feature_epochs, cas_epochs: passes over the data in the training of
            classifier, oracle, feature network and the classifiers of the classification accuracy score (by default as
            the oracle).
        cache_dir: where trained helpers are kept, by default $JEM_HF_CACHE, else ~/.cache/jem_hf.
        progress: called with the name of a stage, its steps done and its steps in all.

    Returns:
        report: "num_images", "num_parameters"; "prediction", "baselines" and "comparison" of [`compare_prediction`];
            where combinations were held out "zero_shot": [`zero_shot_recognition`] of the model, and the accuracy of
            the "classifier"; unless `prediction_only` "oracle", "generation" ([`evaluate_generation`], and
            [`classification_accuracy_score`] under that name), "energy" ([`evaluate_energy`]) and
            "test_energy_quantiles" ([`energy_quantiles`]).
        pictures: what they are made of: `reliability` curves and those of [`evaluate_generation`].
    """
    model.eval()
    config, train = model.config, splits["train"]
    real = {"test": splits[split]} | ({"novel": splits["novel"]} if "novel" in splits else {})
    test, novel = real["test"], real.get("novel")
    in_stage = partial(partial, progress)
    part, validation = validation_part({name: each for name, each in splits.items() if name != split})
    classifier = load_classifier(part, config, classifier_epochs, cache_dir, in_stage("baseline classifier"))
    classifier.to(model.device)
    comparison, curves = compare_prediction(model, classifier, validation, test, num_resamples)
    del part, validation
    report = {"num_images": len(test), "num_parameters": model.num_parameters(), **comparison}
    pictures = {"reliability": curves}
    held_out = torch.empty(0, len(config.attributes), dtype=torch.long)
    if novel is not None:
        held_out = held_out_combinations(config, train.labels, novel.labels)
        report |= _zero_shot(model, classifier, novel, held_out)
    if prediction_only:
        return report, pictures

    helper = dict(cache_dir=cache_dir, num_values=config.num_values)
    judged = train
    if novel is not None:
        judged, real["novel"] = with_half_of_novel(train, novel)
    with join_processes().main_process_first():  # it trains these, the others find them in the cache
        oracle = load_oracle(judged, num_epochs=oracle_epochs, progress=in_stage("oracle"), **helper)
        network = load_feature_network(
            train, num_epochs=feature_epochs, progress=in_stage("feature network"), **helper
        )
    report["oracle"] = {
        "accuracy": float((oracle.predict(test.images) == test.labels)[test.labels >= 0].float().mean())
    }
    requests = requests_by_kind(test.labels, None if novel is None else novel.labels, held_out, num_images)
    report["generation"], drawn = evaluate_generation(model, train, real, requests, oracle, network, in_stage)
    pictures |= drawn
    num_cas = 4 * num_images if num_cas is None else num_cas
    if num_cas:
        report["generation"]["classification_accuracy_score"] = classification_accuracy_score(
            model,
            train,
            test,
            num_cas,
            num_epochs=cas_epochs or oracle_epochs,
            cache_dir=cache_dir,
            in_stage=in_stage,
        )
    report["energy"] = evaluate_energy(model, test.images)
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


def _zero_shot(model: JemModel, classifier: JemModel, novel, held_out: torch.Tensor) -> dict:
    """The section "zero_shot", empty where there is nothing to tell apart."""
    recognition, baseline = (
        zero_shot_recognition(predict(each, novel.images)[0], novel.labels, held_out) for each in (model, classifier)
    )
    if recognition is None:
        return {}
    combinations = [format_request(row.tolist(), model.config) for row in held_out]
    return {"zero_shot": {**recognition, "classifier": baseline["accuracy"], "combinations": combinations}}
