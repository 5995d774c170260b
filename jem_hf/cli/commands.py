"""The command `jem-hf`: results go to standard output, progress and messages to standard error."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .shared import (
    Json,
    Model,
    Output,
    app,
    clear_errors,
    fields_of,
    is_first_process,
    load_model,
    load_with_processor,
    print_json,
    say,
)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog='Every field of the recipe can be set: --max_steps 100 --backbone_kwargs "{width: 64}".',
)
@clear_errors
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of one in training/recipes.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in output_dir.")] = False,
    as_json: Json = False,
):
    """Train the model of a recipe: RECIPE.yaml [--field value ...]."""
    from ..training import recipes

    with contextlib.redirect_stdout(sys.stderr):
        trainer, _ = recipes.train(recipes.load_recipe(recipe, fields_of(context.args)), resume=resume)
        metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if not is_first_process():
        return
    result = {"output_dir": trainer.args.output_dir, **metrics}
    print_json(result) if as_json else typer.echo(f"saved {trainer.args.output_dir}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Fields of a recipe's dataset can be set: --split_file split.json --on_error skip --binarised false.",
)
@clear_errors
def evaluate(
    context: typer.Context,
    model: Model,
    dataset: Annotated[str, typer.Option(help="avatars, a dataset id on the Hub, or a folder.")] = "avatars",
    split: Annotated[str, typer.Option(help="Split to test on.")] = "test",
    prediction_only: Annotated[bool, typer.Option("--prediction-only", help="No generation, no energy.")] = False,
    num_images: Annotated[int, typer.Option(min=8, help="Images drawn for each kind of request.")] = 512,
    num_cas: Annotated[
        int | None,
        typer.Option(min=0, help="Images drawn to train a classifier on; default: 4 times --num-images."),
    ] = None,
    output: Output = None,
    as_json: Json = False,
):
    """Measure a model beside a classifier of the same network; an independent oracle judges its images."""
    from ..training.splits import load_evaluation_splits

    network, processor = load_with_processor(model)
    splits = load_evaluation_splits(dataset, processor, network.config, fields_of(context.args))
    for name in ("train", split):
        if name not in splits:
            raise ValueError(f"{dataset!r} has no split {name!r}; it has {', '.join(splits)}")
    settings = dict(split=split, prediction_only=prediction_only, num_images=num_images, num_cas=num_cas)
    report = _evaluate(network, splits, output, **settings)
    report = {"model": model, "dataset": dataset, "split": split, **report}
    if is_first_process():
        _print_report(report, as_json)


def _evaluate(network, splits, output, **settings) -> dict:
    from ..evaluation.evaluate import evaluate
    from ..evaluation.report import write_report

    with contextlib.redirect_stdout(sys.stderr), _Bars() as progress:
        report, pictures = evaluate(network, splits, progress=progress, **settings)
    if output is not None and is_first_process():
        write_report(report, pictures, output, network.config)
        say(f"wrote {output / 'report.md'}")
    return report


class _Bars:
    """A progress bar for each stage."""

    def __enter__(self):
        self.stage, self.bar = None, None
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self.stage:
            self.__exit__()
            self.stage, self.bar = stage, tqdm(desc=stage, total=total, disable=not is_first_process())
        self.bar.update(done - self.bar.n)

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


def _print_report(report: dict, as_json: bool) -> None:
    if as_json:
        return print_json(report)
    from ..evaluation.report import tables

    typer.echo(tables(report))


@app.command()
@clear_errors
def models(
    name: Annotated[str | None, typer.Argument(help="One model, whole.")] = None,
    filter: Annotated[str | None, typer.Option(help="A pattern, tag, attribute, dataset or recipe.")] = None,
    as_json: Json = False,
):
    """The zoo, from its cards."""
    from ..hub.zoo import list_models, model_info

    infos = [model_info(each) for each in ([name] if name else list_models(filter))]
    if as_json:
        entries = [{"name": info.name, "trained": info.is_trained, **info.card} for info in infos]
        return print_json(entries[0] if name else entries)
    if name:
        return typer.echo((infos[0].folder / "README.md").read_text())
    for info in infos:
        size = f"{info.card['image_size']}x{info.card['image_size']}"
        trained = "trained" if info.is_trained else "recipe only"
        attributes = f"{len(info.card['attributes']):3} attributes" if info.card.get("attributes") else ""
        typer.echo(f"{info.name:20} {size:8} {attributes:14}  {trained}")


@app.command()
@clear_errors
def push(
    model: Model,
    repo_id: Annotated[str, typer.Argument(help="Where on the Hub: user/name, or a name in your own namespace.")],
    private: Annotated[bool | None, typer.Option("--private", help="Make a private repo.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, made where there is none.")] = None,
    message: Annotated[str | None, typer.Option(help="What the history says.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the change, write nothing.")] = False,
    space: Annotated[bool, typer.Option("--space", help="Upload the page of `jem-hf demo` as a Space.")] = False,
    as_json: Json = False,
):
    """Upload a model to the Hub: weights, image processor, code that loads it anywhere, and its card."""
    settings = dict(private=private, revision=revision, commit_message=message, create_pr=create_pr)
    with contextlib.redirect_stdout(sys.stderr):
        if space:
            from ..hub.space import push_space

            commit = push_space(load_model(model), repo_id, **settings)
        else:
            commit = load_model(model).push_to_hub(repo_id, **settings)
    if as_json:
        return print_json({"repo_id": commit.repo_url.repo_id, "commit": commit.oid, "url": commit.pr_url or commit})
    typer.echo(commit.pr_url or commit)


@app.command()
@clear_errors
def demo(
    model: Annotated[str | None, typer.Argument(help="Zoo name, Hub id or folder.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; the first free one from 7860 on.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    as_json: Json = False,
):
    """Open a page to make, tag, edit and compare images."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from ..demo.page import create_page, launch
    except ModuleNotFoundError as error:
        raise ValueError(f"the page needs {error.name}: pip install 'jem_hf[demo]'") from error
    from ..hub.zoo import DEFAULT_MODEL

    with contextlib.redirect_stdout(sys.stderr):
        page = create_page(model or DEFAULT_MODEL)
        url = launch(
            page, server_name=host, server_port=port, inbrowser=browser, quiet=True, prevent_thread_lock=True
        )[1]
    print_json({"url": url}) if as_json else typer.echo(f"{url}  (Ctrl+C ends it)")
    sys.stdout.flush()
    page.block_thread()


@app.command()
@clear_errors
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("quickstart"),
    max_steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps for a first look.")] = None,
    num_train: Annotated[int | None, typer.Option(min=1, help="Fewer training images.")] = None,
    num_images: Annotated[int, typer.Option(min=8, help="Images drawn for each kind of request.")] = 256,
    as_json: Json = False,
):
    """Build data, train from scratch, evaluate, draw: under ten minutes on two cores."""
    import time

    from ..evaluation.document import document
    from ..training import recipes

    start = time.time()
    overrides = {"output_dir": output, "max_steps": max_steps, "num_train": num_train}
    recipe = recipes.load_recipe("quickstart", {k: str(v) for k, v in overrides.items() if v is not None})
    recipe.card["name"] = str(output)
    with contextlib.redirect_stdout(sys.stderr), _Bars() as progress:
        _, splits = recipes.train(recipe)
        cost = f"It took {(time.time() - start) / 60:.1f} minutes on {os.cpu_count()} cores, data included."
        recipe.card["evaluation"] = "jem-hf quickstart"
        model = load_model(str(output))
        report = document(
            model,
            splits,
            output,
            recipe.card,
            "quickstart",
            cost,
            num_images=num_images,
            num_cas=0,
            oracle_epochs=3,
            feature_epochs=2,
            progress=progress,
        )
    report["minutes"] = round((time.time() - start) / 60, 2)
    _print_report(report, as_json)
    say(f"{report['minutes']} minutes; look at README.md, report.md and samples.png in {output}")
