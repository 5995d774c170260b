"""`jem-hf predict`, `audit` and `balance`: a data set put in order."""

import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..curation.audit import ISSUES, audit
from ..curation.audit_page import write_audit
from ..curation.balance import check_addable, extended, fill_combinations, write_extended
from ..curation.other_values import images_of_other_values
from ..curation.pictures import Pictures, find_pictures
from ..curation.table import Table, checked_path
from ..curation.tagging import Tagger, tag_pictures
from ..data.columns import OF_DRAWN_IMAGES, features_of
from ..data.loading import load_attribute_dataset
from ..data.sources import load_source
from ..data.tensors import encode_dataset
from ..evaluation.judges import load_oracle
from ..evaluation.prediction import predict as predict_images
from ..metrics.thresholds import choose_thresholds, parse_rule
from ..models.image_processing_jem import JemImageProcessor
from ..models.modeling_jem import JemModel
from ..training.splits import DEFAULT_SPLIT, load_evaluation_splits
from .shared import (
    FIELDS,
    Crop,
    Folder,
    Json,
    Model,
    ProgressBars,
    app,
    check_folder,
    fields_of,
    load_model,
    load_processor,
    name_or_path,
    path,
    print_json,
    say,
)

PRINTED_TOGETHER = 16  # images
Dataset = Annotated[str, typer.Option(parser=name_or_path, help="avatars, a Hub id or a folder.")]


@app.command(
    epilog="The energy is -log p(x) up to a constant of the model, with --given -log p(x, y): the lower, the more an "
    "image is like the training images, and shows what is given. Compare it between images of one model. "
    "Without --output a file that cannot be read ends the command, after the results of those before it."
)
def predict(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(parser=name_or_path, help='Files, folders, patterns such as "*.jpg", or a data set.')
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", parser=path, help="Table to write: .parquet, .csv or .jsonl.")
    ] = None,
    given: Annotated[str, typer.Option(help='What is known of them, such as "Male & ~Hat".')] = "",
    threshold: Annotated[
        str | None, typer.Option(help="When an attribute counts as there: 0.5, or by --dataset f1 or precision=0.9.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(parser=name_or_path, help="Labelled images by which --threshold is chosen.")
    ] = None,
    outlier_score: Annotated[
        bool | None, typer.Option(help="How strange each image is: slow, so by default not in a table.")
    ] = None,
    crop: Crop = None,
    num_proc: Annotated[int | None, typer.Option(min=0, help="Processes that decode images.")] = None,
    on_error: Annotated[str, typer.Option(help="skip: note a broken image in the table; raise: stop there.")] = "skip",
    as_json: Json = False,
) -> None:
    """Attribute probabilities and energy of images, printed or as a table that goes on where it was interrupted."""
    if output is not None:
        check_folder(checked_path(output).parent)
    network = load_model(model)
    thresholds = _thresholds(network, model, threshold, dataset, given, crop)
    if outlier_score is None:
        outlier_score = output is None and network.has_outlier_score
    crop_to = load_processor(model, network, crop, images, output).crop_to
    tagger = Tagger(model, thresholds=thresholds, given=given, outlier_score=outlier_score, crop_to=crop_to)
    pictures = find_pictures(images, tagger.processor, output)
    if output is None:
        _print(tagger, pictures, as_json)
        return
    about = {"model": tagger.weights, "given": given, "thresholds": thresholds, "data set": pictures.data_sets}
    about |= {"crop_to": crop_to} if crop_to else {}
    table = Table(output, {"image": str} | tagger.columns | {"error": str}, about)
    with ProgressBars() as progress:
        settings = dict(num_proc=num_proc, on_error=on_error, progress=partial(progress, "images"))
        counts = tag_pictures(tagger, pictures, table, **settings)
    if as_json:
        print_json({"output": str(output), **counts, "thresholds": thresholds})
    else:
        say(f"wrote {output}: {counts['tagged']} images, {counts['broken']} broken, {counts['there']} there before")


@app.command("audit", context_settings=FIELDS)
def audit_dataset(
    context: typer.Context,
    model: Model,
    dataset: Dataset,
    folds: Annotated[
        int, typer.Option(min=0, help="Judge labels by so many models that did not learn from them.")
    ] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data by each of these.")] = 6,
    outliers: Annotated[bool, typer.Option(help="Look for images that do not belong, which is slow.")] = True,
    crop: Crop = None,
    output: Folder = "audit",
    as_json: Json = False,
) -> None:
    """Find wrong and missing labels, strangers, copies and missing combinations in a labelled data set."""
    check_folder(output)
    network = load_model(model)
    processor = load_processor(model, network, crop, [dataset])
    with redirect_stdout(sys.stderr), ProgressBars() as progress:
        fields = fields_of(context)
        splits = load_evaluation_splits(dataset, processor, network.config, fields)
        others = images_of_other_values(dataset, network.config, fields)
        settings = dict(num_folds=folds, num_epochs=epochs, outliers=outliers, other_values=others)
        found = audit(network, splits, progress=progress, **settings)
    write_audit(found, splits, output, f"{Path(dataset).name}, seen by {Path(model).name}")
    summary = found.summary()
    if as_json:
        print_json({"output": str(output), **summary})
        return
    for issue, heading in ISSUES.items():
        typer.echo(f"{summary['num_issues'][issue]:7}  {heading}")
    typer.echo(f"{summary['num_rare_combinations']:7}  Combinations that are rare or absent")
    say(f"look at {output / 'index.html'}; all suspects are in {output / 'suspects.parquet'}")


@app.command()
def balance(
    model: Model,
    dataset: Dataset,
    attributes: Annotated[str, typer.Option(help="Whose combinations count, with commas: Male,Blond_Hair.")],
    per_combination: Annotated[int, typer.Option(min=1, help="Images that each combination shall have.")],
    output: Folder = "extended",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw images for rare combinations, keep those that an independent classifier confirms, write the data set."""
    check_folder(output)
    if any(output.glob("data/*")):
        raise ValueError(f"the folder {str(output)!r} has data already: name another one")
    network, processor = load_model(model), JemImageProcessor.from_pretrained(model)
    names, config = [name.strip() for name in attributes.split(",")], network.config
    with redirect_stdout(sys.stderr), ProgressBars() as progress:
        if {*OF_DRAWN_IMAGES} <= features_of(next(iter(load_source(dataset).values()))).keys():
            raise ValueError(f"{dataset!r} has drawn images already: give the data set that it was made from")
        split = config.split or DEFAULT_SPLIT
        loaded = load_attribute_dataset(dataset, split=split)
        known = dict(attributes=config.attributes, values=config.attribute_values, other_values="missing")
        splits = load_attribute_dataset(dataset, split=split, **known)
        if "train" not in splits:
            raise ValueError(f"{dataset!r} has no split 'train' to add images to; it has {', '.join(splits)}")
        check_addable(loaded, names, config)
        train = encode_dataset(splits["train"], processor, config.attributes)
        oracle = load_oracle(train, config.num_values, progress=partial(progress, "classifier"))
        settings = dict(seed=seed, progress=progress)
        images, report = fill_combinations(network, train, names, per_combination, oracle, **settings)
        write_extended(extended(loaded, images), report, output, Path(model).name)
    if as_json:
        print_json({"output": str(output), "combinations": report})
        return
    for each in report:
        typer.echo(f"{each['before']:7} + {each['accepted']:5} of {each['drawn']:5} drawn  {each['request']}")
    say(f"wrote {output}: load_dataset({str(output)!r}) loads it")


def _thresholds(
    network: JemModel, model: str, rule: str | None, dataset: str | None, given: str, crop: str | None
) -> dict[str, float]:
    """Of binary attributes, by a rule; on the validation split of labelled images, else their test split."""
    kind, value = parse_rule(rule) if rule else ("none", 0.0)
    if kind in ("none", "fixed") and dataset is not None:
        raise ValueError(
            "--dataset is for a --threshold to be chosen by, f1 or precision=0.9: add it, or leave both out"
        )
    if kind == "none":
        return {}
    binary = [name for name, values in network.config.named_values.items() if values is None]
    if kind == "fixed":
        return dict.fromkeys(binary, value)
    if dataset is None or given:
        remedy = "leave --given out" if given else "name them with --dataset"
        raise ValueError(f"--threshold {rule} is chosen by labelled images of all kinds: {remedy}")
    splits = load_evaluation_splits(dataset, load_processor(model, network, crop, [dataset]), network.config)
    part = next(splits[name] for name in ("validation", "test", "train") if name in splits)
    logits = predict_images(network, part.images)[0]
    places = [network.config.attributes.index(name) for name in binary]
    p = logits.softmax(-1)[:, places, 1].numpy()
    found = choose_thresholds(p, part.labels[:, places].numpy(), binary, rule)
    if others := [name for name in binary if name not in found]:
        say(f"no image shows {', '.join(others)}, so there the threshold is 0.5")
    return found


def _print(tagger: Tagger, pictures: Pictures, as_json: bool) -> None:
    config, results = tagger.config, []
    try:
        for names, pixel_values, errors in pictures.batches(PRINTED_TOGETHER, num_proc=0):
            tags = tagger.tag(pixel_values) if len(pixel_values) else {}
            for i, (name, error) in enumerate(zip(names, errors)):
                if error:
                    raise ValueError(error)
                p = {label: tags[f"p_{label}"][i] for label in config.label_names}
                scores = {each: tags[each][i] for each in ("energy", "outlier_score") if each in tags}
                results.append({"image": name, **scores, "probabilities": p})
                if not as_json:
                    typer.echo("\n".join(_lines(results[-1], config)))
    finally:
        if as_json and results:
            print_json(results)


def _lines(result: dict, config) -> list[str]:
    """An image as text: its attributes, the most probable before all; of several values the best, and the next."""
    score = result.get("outlier_score")
    strange = "" if score is None else f", stranger than {score:.1%} of the training images"
    rows = []
    for name, values in config.named_values.items():
        if values is None:
            rows.append((result["probabilities"][name], name, ""))
        else:
            ranked = sorted(((result["probabilities"][f"{name}={value}"], value) for value in values), reverse=True)
            (p, best), (q, second) = ranked[:2]
            rows.append((p, f"{name}={best}", f"  (then {second}, {q:.3f})"))
    lines = [f"  {p:6.3f}  {label}{rest}" for p, label, rest in sorted(rows, key=lambda row: -row[0])]
    return [f"{result['image']}  energy {result['energy']:.2f}{strange}", *lines]
