"""`jem-hf quickstart` and `train`."""

import os
import sys
import time
from contextlib import redirect_stdout
from typing import Annotated

import typer

from ..evaluation.evaluate import evaluate
from ..evaluation.report import document
from ..metrics.tables import tables
from ..training import recipes
from .shared import (
    FIELDS,
    Folder,
    Json,
    ProgressBars,
    app,
    check_folder,
    fields_of,
    is_first_process,
    load_model,
    name_or_path,
    path,
    print_json,
    say,
)


@app.command()
def quickstart(
    output: Folder = "quickstart",
    max_steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps for a first look.")] = None,
    num_train: Annotated[int | None, typer.Option(min=1, help="Fewer training images.")] = None,
    num_images: Annotated[int, typer.Option(min=8, help="Images drawn for each kind of request.")] = 256,
    as_json: Json = False,
):
    """Build data, train from scratch, evaluate, draw: under ten minutes on two cores."""
    check_folder(output)
    start = time.time()
    overrides = {"output_dir": output, "max_steps": max_steps, "num_train": num_train}
    recipe = recipes.load_recipe("quickstart", {k: str(v) for k, v in overrides.items() if v is not None})
    recipe.card["name"] = str(output)
    with redirect_stdout(sys.stderr), ProgressBars() as progress:
        _, splits = recipes.train(recipe)
        cost = f"It took {(time.time() - start) / 60:.1f} minutes on {os.cpu_count()} cores, data included."
        recipe.card["evaluation"] = "jem-hf quickstart"
        settings = dict(num_images=num_images, num_cas=0, oracle_epochs=3, feature_epochs=2, progress=progress)
        model = load_model(str(output))
        report, pictures = evaluate(model, splits, **settings)
        document(model, report, pictures, output, recipe.card, "quickstart", cost)
    report["minutes"] = round((time.time() - start) / 60, 2)
    print_json(report) if as_json else typer.echo(tables(report))
    say(f"{report['minutes']} minutes; look at README.md, report.md and samples.png in {output}")


@app.command(
    context_settings=FIELDS,
    epilog='Every field of the recipe can be set: --max_steps 100 --backbone_kwargs "{width: 64}".',
)
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(parser=name_or_path, help="A YAML file, or a name in training/recipes.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in output_dir.")] = False,
    as_json: Json = False,
):
    """Train the model of a recipe: RECIPE.yaml [--field value ...]."""
    settings = recipes.load_recipe(recipe, fields_of(context))
    check_folder(path(settings.training.get("output_dir", ".")))
    with redirect_stdout(sys.stderr):
        trainer, _ = recipes.train(settings, resume=resume)
        metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if not is_first_process():
        return
    result = {"output_dir": trainer.args.output_dir, **metrics}
    print_json(result) if as_json else typer.echo(f"saved {trainer.args.output_dir}")
