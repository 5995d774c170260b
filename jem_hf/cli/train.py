"""`jem-hf quickstart`, `train` and `evaluate`."""

import os
import sys
import time
from contextlib import redirect_stdout
from typing import Annotated

import typer

from ..evaluation.evaluate import evaluate
from ..evaluation.report import document, write_report
from ..metrics.tables import tables
from ..training import recipes
from ..training.splits import load_evaluation_splits
from . import shared
from .shared import FIELDS, Crop, Folder, Json, Model, app, name_or_path


@app.command()
def quickstart(
    output: Folder = "quickstart",
    max_steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps for a first look.")] = None,
    num_train: Annotated[int | None, typer.Option(min=1, help="Fewer training images.")] = None,
    num_images: Annotated[int, typer.Option(min=8, help="Images drawn for each kind of request.")] = 256,
    as_json: Json = False,
) -> None:
    """Build data, train, evaluate, draw: under ten minutes on two cores."""
    shared.check_folder(output)
    start = time.time()
    overrides = {"output_dir": output, "max_steps": max_steps, "num_train": num_train}
    recipe = recipes.load_recipe("quickstart", {k: str(v) for k, v in overrides.items() if v is not None})
    recipe.card["name"] = str(output)
    for name in ("num_test", "num_novel"):  # a first look with few images shall not wait for many others
        recipe.dataset[name] = min(recipe.dataset[name], recipe.dataset["num_train"])
    with redirect_stdout(sys.stderr), shared.ProgressBars() as progress:
        _, splits = recipes.train(recipe)
        cost = f"It took {(time.time() - start) / 60:.1f} minutes on {os.cpu_count()} cores, data included."
        recipe.card["evaluation"] = "jem-hf quickstart"
        settings = dict(num_images=num_images, num_cas=0, oracle_epochs=3, feature_epochs=2, progress=progress)
        model = shared.load_model(str(output))
        report, pictures = evaluate(model, splits, **settings)
        document(model, report, pictures, output, recipe.card, "quickstart", cost)
    report["minutes"] = round((time.time() - start) / 60, 2)
    shared.print_json(report) if as_json else typer.echo(tables(report))
    shared.say(f"{report['minutes']} minutes; look at README.md, report.md and samples.png in {output}")


@app.command(
    context_settings=FIELDS,
    epilog='Every field of the recipe can be set: --max_steps 100 --backbone_kwargs "{width: 64}".',
)
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(parser=name_or_path, help="A YAML file, or a name in training/recipes.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in output_dir.")] = False,
    as_json: Json = False,
) -> None:
    """Train the model of a recipe: RECIPE.yaml [--field value ...]."""
    settings = recipes.load_recipe(recipe, shared.fields_of(context))
    shared.check_folder(shared.path(settings.training.get("output_dir", ".")))
    with redirect_stdout(sys.stderr):
        trainer, _ = recipes.train(settings, resume=resume)
        metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if not shared.is_first_process():
        return
    result = {"output_dir": trainer.args.output_dir, **metrics}
    shared.print_json(result) if as_json else typer.echo(f"saved {trainer.args.output_dir}")


@app.command(
    "evaluate",
    context_settings=FIELDS,
    epilog="Fields of a recipe's dataset can be set: --split_file split.json --on_error skip --binarised false.",
)
def evaluate_model(
    context: typer.Context,
    model: Model,
    dataset: Annotated[str, typer.Option(parser=name_or_path, help="avatars, a Hub id or a folder.")] = "avatars",
    split: Annotated[str, typer.Option(help="Split to test on.")] = "test",
    prediction_only: Annotated[bool, typer.Option("--prediction-only", help="No generation, no energy.")] = False,
    baselines: Annotated[bool, typer.Option(help="Train classifiers to compare with, which takes longest.")] = True,
    num_images: Annotated[int, typer.Option(min=8, help="Images drawn for each kind of request.")] = 512,
    num_cas: Annotated[int | None, typer.Option(min=0, help="More, for a classifier; default: 4 times that.")] = None,
    bits_per_dimension: Annotated[
        bool, typer.Option("--bits-per-dimension", help="Estimate the likelihood too: minutes, by annealed chains.")
    ] = False,
    num_chains: Annotated[int, typer.Option(min=2, help="Chains for --bits-per-dimension, each way.")] = 16,
    num_temperatures: Annotated[int, typer.Option(min=1, help="Their temperatures; more are more exact.")] = 200,
    crop: Crop = None,
    output: Folder = None,
    as_json: Json = False,
) -> None:
    """Measure a model beside a classifier of the same network; an independent oracle judges its images."""
    if output is not None:
        shared.check_folder(output)
    network = shared.load_model(model)
    fields = shared.fields_of(context)
    processor = shared.load_processor(model, network, crop, [dataset])
    splits = load_evaluation_splits(dataset, processor, network.config, fields)
    settings = dict(split=split, prediction_only=prediction_only, baselines=baselines)
    settings |= dict(num_images=num_images, num_cas=num_cas)
    settings |= dict(bits_per_dimension=bits_per_dimension, num_chains=num_chains, num_temperatures=num_temperatures)
    with redirect_stdout(sys.stderr), shared.ProgressBars() as progress:
        report, pictures = evaluate(network, splits, progress=progress, cache_dir=fields.get("cache_dir"), **settings)
    if not shared.is_first_process():
        return
    if output is not None:
        write_report(report, pictures, output, network.config)
        shared.say(f"wrote {output / 'report.md'}")
    report = {"model": model, "dataset": dataset, "split": split, **report}
    shared.print_json(report) if as_json else typer.echo(tables(report))
