"""`jem-hf evaluate`."""

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from ..evaluation.evaluate import evaluate
from ..evaluation.report import write_report
from ..metrics.tables import tables
from ..training.splits import load_evaluation_splits
from .shared import (
    FIELDS,
    Folder,
    Json,
    Model,
    ProgressBars,
    app,
    check_folder,
    fields_of,
    is_first_process,
    load_with_processor,
    name_or_path,
    print_json,
    say,
)


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
    num_images: Annotated[int, typer.Option(min=8, help="Images drawn for each kind of request.")] = 512,
    num_cas: Annotated[int | None, typer.Option(min=0, help="More, for a classifier; default: 4 times that.")] = None,
    bits_per_dimension: Annotated[
        bool, typer.Option("--bits-per-dimension", help="Estimate the likelihood too: minutes, by annealed chains.")
    ] = False,
    num_chains: Annotated[int, typer.Option(min=2, help="Chains for --bits-per-dimension, each way.")] = 16,
    num_temperatures: Annotated[int, typer.Option(min=1, help="Their temperatures; more are more exact.")] = 200,
    output: Folder = None,
    as_json: Json = False,
):
    """Measure a model beside a classifier of the same network; an independent oracle judges its images."""
    if output is not None:
        check_folder(output)
    network, processor = load_with_processor(model)
    fields = fields_of(context)
    splits = load_evaluation_splits(dataset, processor, network.config, fields)
    settings = dict(
        split=split,
        prediction_only=prediction_only,
        bits_per_dimension=bits_per_dimension,
        num_images=num_images,
        num_cas=num_cas,
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        cache_dir=fields.get("cache_dir"),
    )
    with redirect_stdout(sys.stderr), ProgressBars() as progress:
        report, pictures = evaluate(network, splits, progress=progress, **settings)
    if not is_first_process():
        return
    if output is not None:
        write_report(report, pictures, output, network.config)
        say(f"wrote {output / 'report.md'}")
    report = {"model": model, "dataset": dataset, "split": split, **report}
    print_json(report) if as_json else typer.echo(tables(report))
