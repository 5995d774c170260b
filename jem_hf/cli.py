"""The command `jem-hf`: results go to standard output, progress and messages to standard error."""

import contextlib
import functools
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    help="Joint energy-based models: one network that predicts attributes, draws images for them, and scores both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Model = Annotated[str, typer.Argument(help="Zoo name, Hub id or folder.")]
Output = Annotated[Optional[Path], typer.Option("--output", "-o", help="Where to write.")]  # noqa: UP045


def clear_errors(command):
    """Bad input ends a command with one line and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        from huggingface_hub.errors import StrictDataclassError

        try:
            return command(*args, **kwargs)
        except (ValueError, OSError, StrictDataclassError) as error:
            message = " ".join(str(error).split())
            typer.echo(f"jem-hf: {message}", err=True)
            raise typer.Exit(2) from None

    return wrapped


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _is_first_process() -> bool:
    """The one of those that torchrun started which writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def _load_model(name: str):
    import torch
    from transformers.utils import logging

    from .modeling_jem import JemModel
    from .zoo import list_models

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a checkpoint that does not fit is told by the error alone
    try:
        return JemModel.from_pretrained(name).to("cuda" if torch.cuda.is_available() else "cpu")
    except OSError as error:
        if Path(name).exists():
            raise
        known = ", ".join(list_models())
        raise ValueError(f"no model {name!r}: it is not in the zoo ({known}), not a folder, and {error}") from error
    finally:
        logging.set_verbosity(verbosity)


def _print_json(content) -> None:
    typer.echo(json.dumps(content, allow_nan=False))


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
    from . import recipes

    with contextlib.redirect_stdout(sys.stderr):
        trainer, _ = recipes.train(recipes.load_recipe(recipe, _overrides(context.args)), resume=resume)
        metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if not _is_first_process():
        return
    result = {"output_dir": trainer.args.output_dir, **metrics}
    _print_json(result) if as_json else typer.echo(f"saved {trainer.args.output_dir}")


def _overrides(args: list[str]) -> dict[str, str]:
    """`--name value` and `--name=value` as a dict."""
    overrides, rest = {}, list(args)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--") or name == "--":
            raise ValueError(f"unexpected argument {name!r}: set fields as --field value")
        name, equals, value = name[2:].partition("=")
        if not equals and not rest:
            raise ValueError(f"--{name} needs a value")
        overrides[name] = value if equals else rest.pop(0)
    return overrides


@app.command()
@clear_errors
def generate(
    model: Model,
    request: Annotated[str, typer.Argument(help='What to draw, such as "Smiling & (Hat | ~Male)".')],
    num_images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 16,
    to: Annotated[Optional[str], typer.Option(help="Another request: the images go from the one to it.")] = None,  # noqa: UP045
    candidates: Annotated[Optional[int], typer.Option(min=1, help="Draw so many an image, keep the best.")] = None,  # noqa: UP045
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file of the grid.")] = Path("grid.png"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[Optional[int], typer.Option(min=1, help="Steps of the chain.")] = None,  # noqa: UP045
    guidance: Annotated[Optional[float], typer.Option(help="Guidance scale; more obeys more.")] = None,  # noqa: UP045
    free: Annotated[Optional[str], typer.Option(help="Free attributes: complete, gibbs or marginalise.")] = None,  # noqa: UP045
    sampler: Annotated[Optional[str], typer.Option(help="flow, langevin, mala, hmc, ...")] = None,  # noqa: UP045
    sampler_kwargs: Annotated[Optional[str], typer.Option(help='Its arguments, such as "{step_size: 0.01}".')] = None,  # noqa: UP045
    as_json: Json = False,
):
    """Draw images for a combination of attributes into a PNG grid."""
    _draw(
        model,
        request,
        output,
        as_json,
        num_images=num_images,
        to=to,
        num_candidates=candidates,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        free_attributes=free,
        sampler=sampler,
        sampler_kwargs=_mapping("--sampler-kwargs", sampler_kwargs),
    )


@app.command()
@clear_errors
def edit(
    model: Model,
    image: Annotated[Path, typer.Argument(help="Image file.")],
    request: Annotated[str, typer.Argument(help='What shall change, such as "Smiling & ~Hat"; all else is held.')],
    num_images: Annotated[int, typer.Option(min=1, help="Number of variants.")] = 1,
    strength: Annotated[Optional[float], typer.Option(help="Share of noise to start from; 0.5 if not given.")] = None,  # noqa: UP045
    mask: Annotated[Optional[Path], typer.Option(help="Image, white where pixels are drawn anew.")] = None,  # noqa: UP045
    guidance: Annotated[Optional[float], typer.Option(help="Weight of what shall change.")] = None,  # noqa: UP045
    hold: Annotated[Optional[float], typer.Option(help="Weight of what shall not.")] = None,  # noqa: UP045
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file of the grid.")] = Path("edited.png"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[Optional[int], typer.Option(min=1, help="Steps of the chain from pure noise.")] = None,  # noqa: UP045
    as_json: Json = False,
):
    """Change attributes of an image, or fill in what a mask covers."""
    from .image_processing_jem import read_image

    _draw(
        model,
        request,
        output,
        as_json,
        num_images=num_images,
        image=read_image(image),
        strength=strength,
        mask=None if mask is None else read_image(mask),
        guidance_scale=guidance,
        hold_scale=hold,
        seed=seed,
        num_inference_steps=steps,
    )


def _draw(model: str, request: str, output: Path, as_json: bool, **arguments) -> None:
    """The images of one request as a grid."""
    from .pipeline_jem import AttributeConditionalGenerationPipeline
    from .plots import image_grid

    pipe = AttributeConditionalGenerationPipeline(_load_model(model))
    length = arguments["num_inference_steps"] or pipe.model.config.num_inference_steps
    with typer.progressbar(length=length, file=typer.get_text_stream("stderr")) as bar:
        drawn = pipe(request, callback=lambda x, *info: bar.update(1), **arguments)
    output.parent.mkdir(parents=True, exist_ok=True)
    image_grid([item["image"] for item in drawn], scale=max(1, 96 // pipe.model.config.image_size)).save(output)
    if as_json:
        images = [{key: value for key, value in item.items() if key != "image"} for item in drawn]
        _print_json({"request": request, "output": str(output), "images": images})
    else:
        _say(f"wrote {output}")


def _mapping(option: str, text: str | None) -> dict | None:
    from .recipes import read_yaml

    value = None if text is None else read_yaml(text, option)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{option} is a mapping such as '{{step_size: 0.01}}', not {text!r}")
    return value


@app.command()
@clear_errors
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    given: Annotated[Optional[str], typer.Option(help='What is known of them, such as "Male & ~Hat".')] = None,  # noqa: UP045
    as_json: Json = False,
):
    """Attribute probabilities and energy of images. Lower energy: more like the training images."""
    import torch

    from .image_processing_jem import read_image
    from .requests_jem import parse_request

    pictures = [read_image(path) for path in images]
    network, processor = _load_with_processor(model)
    pixels = processor(pictures, return_tensors="pt")["pixel_values"].to(network.device)
    labels = torch.tensor([parse_request(given or "", network.config)] * len(pixels), device=network.device)
    with torch.no_grad():
        distribution = network.label_distribution(pixels)
        energies = -distribution.log_joint(labels)
        scores = network.log_odds(distribution.marginal_logits(labels)[0]).sigmoid()
    results = []
    for path, energy, row in zip(images, energies.tolist(), scores.tolist()):
        probabilities = {network.config.id2label[i]: p for i, p in enumerate(row)}
        results.append({"image": str(path), "energy": energy, "probabilities": probabilities})
    if as_json:
        return _print_json(results)
    for result in results:
        typer.echo(f"{result['image']}  energy {result['energy']:.2f}")
        for name, p in sorted(result["probabilities"].items(), key=lambda item: -item[1]):
            typer.echo(f"  {p:6.3f}  {name}")


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
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Images drawn to train a classifier on; default: 4 times --num-images."),
    ] = None,
    output: Output = None,
    as_json: Json = False,
):
    """Measure a model beside a classifier of the same network; an independent oracle judges its images."""
    from .recipes import load_evaluation_splits

    network, processor = _load_with_processor(model)
    splits = load_evaluation_splits(dataset, processor, network.config, _overrides(context.args))
    for name in ("train", split):
        if name not in splits:
            raise ValueError(f"{dataset!r} has no split {name!r}; it has {', '.join(splits)}")
    settings = dict(split=split, prediction_only=prediction_only, num_images=num_images, num_cas=num_cas)
    report = _evaluate(network, splits, output, **settings)
    report = {"model": model, "dataset": dataset, "split": split, **report}
    if _is_first_process():
        _print_report(report, as_json)


def _load_with_processor(name: str):
    from .image_processing_jem import JemImageProcessor

    return _load_model(name), JemImageProcessor.from_pretrained(name)


def _evaluate(network, splits, output, **settings) -> dict:
    from .evaluation import evaluate
    from .report import write_report

    with contextlib.redirect_stdout(sys.stderr), _Bars() as progress:
        report, pictures = evaluate(network, splits, progress=progress, **settings)
    if output is not None and _is_first_process():
        write_report(report, pictures, output, network.config)
        _say(f"wrote {output / 'report.md'}")
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
            self.stage, self.bar = stage, tqdm(desc=stage, total=total, disable=not _is_first_process())
        self.bar.update(done - self.bar.n)

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


def _print_report(report: dict, as_json: bool) -> None:
    if as_json:
        return _print_json(report)
    from .report import tables

    typer.echo(tables(report))


@app.command()
@clear_errors
def models(
    name: Annotated[Optional[str], typer.Argument(help="One model, whole.")] = None,  # noqa: UP045
    filter: Annotated[Optional[str], typer.Option(help="A pattern, tag, attribute, dataset or recipe.")] = None,  # noqa: UP045
    as_json: Json = False,
):
    """The zoo, from its cards."""
    from .zoo import list_models, model_info

    infos = [model_info(each) for each in ([name] if name else list_models(filter))]
    if as_json:
        entries = [{"name": info.name, "trained": info.is_trained, **info.card} for info in infos]
        return _print_json(entries[0] if name else entries)
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
    private: Annotated[Optional[bool], typer.Option("--private", help="Make a private repo.")] = None,  # noqa: UP045
    revision: Annotated[Optional[str], typer.Option(help="Branch, made where there is none.")] = None,  # noqa: UP045
    message: Annotated[Optional[str], typer.Option(help="What the history says.")] = None,  # noqa: UP045
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the change, write nothing.")] = False,
    space: Annotated[bool, typer.Option("--space", help="Upload the page of `jem-hf demo` as a Space.")] = False,
    as_json: Json = False,
):
    """Upload a model to the Hub: weights, image processor, code that loads it anywhere, and its card."""
    settings = dict(private=private, revision=revision, commit_message=message, create_pr=create_pr)
    with contextlib.redirect_stdout(sys.stderr):
        if space:
            from .space import push_space

            commit = push_space(_load_model(model), repo_id, **settings)
        else:
            commit = _load_model(model).push_to_hub(repo_id, **settings)
    if as_json:
        return _print_json({"repo_id": commit.repo_url.repo_id, "commit": commit.oid, "url": commit.pr_url or commit})
    typer.echo(commit.pr_url or commit)


@app.command()
@clear_errors
def demo(
    model: Annotated[Optional[str], typer.Argument(help="Zoo name, Hub id or folder.")] = None,  # noqa: UP045
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[Optional[int], typer.Option(help="Port; the first free one from 7860 on.")] = None,  # noqa: UP045
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    as_json: Json = False,
):
    """Open a page to make, tag, edit and compare images."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from .demo import create_page, launch
    except ModuleNotFoundError as error:
        raise ValueError(f"the page needs {error.name}: pip install 'jem_hf[demo]'") from error
    from .zoo import DEFAULT_MODEL

    with contextlib.redirect_stdout(sys.stderr):
        page = create_page(model or DEFAULT_MODEL)
        url = launch(
            page, server_name=host, server_port=port, inbrowser=browser, quiet=True, prevent_thread_lock=True
        )[1]
    _print_json({"url": url}) if as_json else typer.echo(f"{url}  (Ctrl+C ends it)")
    sys.stdout.flush()
    page.block_thread()


@app.command()
@clear_errors
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("quickstart"),
    max_steps: Annotated[Optional[int], typer.Option(min=1, help="Fewer steps for a first look.")] = None,  # noqa: UP045
    num_train: Annotated[Optional[int], typer.Option(min=1, help="Fewer training images.")] = None,  # noqa: UP045
    num_images: Annotated[int, typer.Option(min=8, help="Images drawn for each kind of request.")] = 256,
    as_json: Json = False,
):
    """Build data, train from scratch, evaluate, draw: under ten minutes on two cores."""
    import time

    from . import recipes
    from .cards import document

    start = time.time()
    overrides = {"output_dir": output, "max_steps": max_steps, "num_train": num_train}
    recipe = recipes.load_recipe("quickstart", {k: str(v) for k, v in overrides.items() if v is not None})
    recipe.card["name"] = str(output)
    with contextlib.redirect_stdout(sys.stderr), _Bars() as progress:
        _, splits = recipes.train(recipe)
        cost = f"It took {(time.time() - start) / 60:.1f} minutes on {os.cpu_count()} cores, data included."
        recipe.card["evaluation"] = "jem-hf quickstart"
        model = _load_model(str(output))
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
    _say(f"{report['minutes']} minutes; look at README.md, report.md and samples.png in {output}")
