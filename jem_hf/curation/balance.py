"""Images drawn for combinations of attributes that a data set lacks, and kept where a stranger sees them too."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..data.attributes import fold
from ..data.columns import OF_DRAWN_IMAGES
from ..data.tensors import AttributeTensors
from ..evaluation.judges import Oracle
from ..models.configuration_jem import JemConfig
from ..models.image_processing_jem import JemImageProcessor, to_pixels
from ..models.modeling_jem import JemModel
from ..models.requests_jem import format_request
from ..models.values_jem import as_choice, value_of

MAX_ATTEMPTS = 10  # images drawn for each one that is wanted, after which a combination is given up
BATCH_SIZE = 64


def fill_combinations(
    model: JemModel,
    train: AttributeTensors,
    attributes: Sequence[str],
    per_combination: int,
    oracle: Oracle,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    Draw images until each combination of the values of some attributes has enough of them.

    Args:
        train (`AttributeTensors`): What there is.
        attributes (`Sequence[str]`): Whose combinations count, such as `["Male", "Blond_Hair"]`.
        per_combination (`int`): How many images each shall have.
        oracle ([`Oracle`](judges.py)): Trained on `train`, not on the model. An image in which it does not see the
            whole combination before all others is dropped, see [`combination_log_odds`].
        seed (`int`): Of the noise.

    Returns:
        images: "image", "attributes" (values by name), "request", "seed", "energy", in the order drawn.
        report: of each combination "request", "before", "drawn", "accepted" and "after".

    Raises:
        ValueError: an attribute that the model lacks, or a number below one.
    """
    config = model.config
    for name in attributes:
        as_choice("attribute", name, config.attributes)
    if not attributes or len(set(attributes)) < len(attributes) or per_combination < 1:
        raise ValueError("name one or more different attributes, and a number of images from 1 on")
    places = [config.attributes.index(name) for name in attributes]
    counts = Counter(tuple(row) for row in train.labels[:, places].tolist())
    combinations = list(product(*(range(config.num_values[k]) for k in places)))
    prior = torch.tensor([counts[each] for each in combinations]).view([config.num_values[k] for k in places])
    wanted = {each: max(0, per_combination - counts[each]) for each in combinations}
    images, report, total = [], [], sum(wanted.values())
    for number, combination in enumerate(combinations):
        request = [-1] * len(config.attributes)
        for k, label in zip(places, combination):
            request[k] = label
        text, drawn, accepted = format_request(request, config), 0, []
        while len(accepted) < wanted[combination] and drawn < MAX_ATTEMPTS * wanted[combination]:
            own_seed = seed + 1_000_003 * number + drawn
            x, energies = _draw(model, request, own_seed)
            seen = combination_log_odds(oracle.predict_proba(x)[:, places], prior).argmax(1)
            right = (seen == number).nonzero()[:, 0].tolist()
            accepted += [(x[i], own_seed, energies[i]) for i in right]
            drawn += len(x)
            progress("images", len(images) + min(len(accepted), wanted[combination]), total)
        shown = {name: value_of(label, config.named_values[name]) for name, label in zip(attributes, combination)}
        accepted = accepted[: wanted[combination]]
        for pixels, own_seed, energy in accepted:
            image = JemImageProcessor.to_pil(pixels[None])[0]
            images.append(dict(image=image, attributes=shown, request=text, seed=own_seed, energy=energy))
        before = counts[combination]
        report.append(
            {
                "request": text,
                "before": before,
                "drawn": drawn,
                "accepted": len(accepted),
                "after": before + len(accepted),
            }
        )
    return images, report


def combination_log_odds(p: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """
    How much speaks for each combination of values if the attributes had nothing to do with each other.

    A classifier that was trained where blond men are absent takes no man for blond: of real ones it found none. So its
    posterior is freed from the prior by which the attributes go together in its training data (Saerens, Latinne and
    Decaestecker 2002, equation 2.4).

    Args:
        p (`torch.Tensor`): `p(y_k | x)` (B, K, V) of a classifier.
        counts (`torch.Tensor`): Of each combination in its training data, one axis an attribute.

    Returns:
        (B, number of combinations), in the order of `counts`.
    """
    prior = (counts + 1.0) / (counts + 1.0).sum()  # one more of each, or an absent one could not be seen at all
    log_odds = -prior.log()
    for axis, num in enumerate(counts.shape):
        shape = [num if each == axis else 1 for each in range(counts.ndim)]
        marginal = prior.movedim(axis, 0).reshape(num, -1).sum(1)
        log_odds = log_odds + (marginal * p[:, axis, :num]).log().view(-1, *shape)
    return log_odds.flatten(1)


@torch.no_grad()
def _draw(model: JemModel, request: list[int], seed: int) -> tuple[torch.Tensor, list[float]]:
    """A batch of images (B, C, H, W) of a request, rounded to 8 bits as a file has them, and their energies."""
    labels = torch.tensor([request] * BATCH_SIZE, device=model.device)
    generator = torch.Generator(model.device).manual_seed(seed)
    x, _ = model.generate(labels, generator=generator)
    x = to_pixels(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return x.cpu(), (-model.log_joint(x, labels)).tolist()


def check_addable(dataset, names: Sequence[str], config: JemConfig) -> None:
    """
    Raise `ValueError` unless images of these attributes of a model can be added to a data set, a `DatasetDict`.
    """
    features = next(iter(dataset.values())).features
    for name in names:
        as_choice("attribute", name, config.attributes)
        if name not in features:
            raise ValueError(
                f"the data have no attribute {name!r} that drawn images could have: "
                f"cast its column to bool or ClassLabel"
            )
        own = getattr(features[name], "names", None)
        if own and config.named_values[name] is None:
            raise ValueError(
                f"attribute {name!r} has the values {', '.join(own)} in the data and is binary in the model: "
                f"cast its column to bool"
            )
        for label in range(len(config.values(name))):
            _spelled(features[name], name, value_of(label, config.named_values[name]))


def _spelled(feature: Any, name: str, value: Any) -> Any:
    """A value of a model as a column of a data set has it."""
    if not isinstance(value, str):
        return value
    own = {fold(each): each for each in getattr(feature, "names", [])}
    if fold(value) not in own:
        raise ValueError(f"attribute {name!r} has no value {value!r} in the data: rename the values of the data")
    return own[fold(value)]


def extended(dataset, images: list[dict[str, Any]]):
    """
    A data set with drawn images added to its split "train".

    All rows get `synthetic`, and `request`, `seed` and `energy`, which photographs lack. Of drawn images the labels of
    attributes that were not asked for are missing. Photographs that are files elsewhere are taken in.

    Args:
        dataset (`datasets.DatasetDict`): As `load_attribute_dataset` gives it.
        images (`list[dict]`): As [`fill_combinations`] gives them.
    """
    import datasets
    from datasets.table import embed_table_storage

    kinds = dict(zip(OF_DRAWN_IMAGES, ("bool", "string", "int64", "float64")))
    parts = {}
    for split, rows in dataset.items():
        features = rows.features | {name: datasets.Value(kind) for name, kind in kinds.items()}
        for name in OF_DRAWN_IMAGES:
            values = [False if name == "synthetic" else None] * len(rows)
            rows = rows.add_column(name, values, feature=features[name])
        parts[split] = (
            rows.with_format("arrow").map(embed_table_storage, batched=True, batch_size=256).with_format(None)
        )
    if images:
        own = [
            {name: _spelled(features[name], name, value) for name, value in each["attributes"].items()}
            | {**each, "synthetic": True}
            for each in images
        ]
        columns = {name: [each.get(name) for each in own] for name in features}
        drawn = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        parts["train"] = datasets.concatenate_datasets([parts["train"], drawn])
    return datasets.DatasetDict(parts)


def write_extended(dataset, report: list[dict], folder: str | Path, model: str) -> None:
    """Write a data set as parquet files that `datasets` loads, with a card and `balance.json`, the report."""
    folder = Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, rows in dataset.items():
        rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    (folder / "balance.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [
        f"| {each['request']} | {each['before']} | {each['drawn']} | {each['accepted']} | {each['after']} |"
        for each in report
    ]
    table = "\n".join(["| combination | before | drawn | accepted | after |", "|---|---:|---:|---:|---:|", *lines])
    text = (
        f"# Extended by `{model}`\n\nImages with `synthetic` were drawn by a joint energy-based model for the "
        "`request` beside them, by `jem-hf balance`, and kept where a classifier that was trained on the photographs "
        f"alone saw all of it.\n\n{table}\n"
    )
    (folder / "README.md").write_text(text)
