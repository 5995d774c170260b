"""`jem-hf generate`, `edit` and `predict`: from requests to images and back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..models.image_processing_jem import JemImageProcessor, open_image, read_image
from ..models.modeling_jem import JemModel
from ..models.pipeline_jem import AttributeConditionalGenerationPipeline
from ..models.requests_jem import crossed, parse_request
from ..plots import image_grid
from ..training.recipes import read_yaml
from .shared import (
    ImageFile,
    Json,
    Model,
    ProgressBars,
    app,
    check_image_file,
    load_model,
    path,
    print_json,
    say,
)

BATCH_SIZE = 16  # images that `predict` prints together


@app.command()
def generate(
    model: Model,
    request: Annotated[str, typer.Argument(help='What to draw, such as "Smiling & (Hat | ~Male)".')] = "",
    num_images: Annotated[int | None, typer.Option(min=1, help="Number of images, by default 16.")] = None,
    rows: Annotated[str | None, typer.Option(help='A grid: an attribute, a row a value; or "A in (b, c)".')] = None,
    columns: Annotated[str | None, typer.Option(help="The attribute of its columns; all share one noise.")] = None,
    to: Annotated[str | None, typer.Option(help="Another request: the images go from the one to it.")] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="Draw so many an image, keep the best.")] = None,
    output: ImageFile = "grid.png",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the chain.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; more obeys more.")] = None,
    free: Annotated[str | None, typer.Option(help="Free attributes: complete, gibbs or marginalise.")] = None,
    sampler: Annotated[str | None, typer.Option(help="flow, langevin, mala, hmc, mixed_hmc, ...")] = None,
    sampler_kwargs: Annotated[str | None, typer.Option(help='Its arguments, such as "{step_size: 0.01}".')] = None,
    label_sampler: Annotated[
        str | None, typer.Option(help="How labels that interact are drawn: gibbs or gibbs_with_gradients.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw images for a combination of attributes into a grid, or one image for each combination of two attributes."""
    check_image_file(output)
    if (rows is None) != (columns is None):
        raise ValueError("--rows and --columns go together: name two attributes")
    if rows is not None and (to is not None or num_images is not None):
        raise ValueError("a grid of --rows and --columns has one image a cell: leave --to and --num-images out")
    settings = None if sampler_kwargs is None else read_yaml(sampler_kwargs, "--sampler-kwargs")
    if not isinstance(settings, dict | None):
        raise ValueError(f"--sampler-kwargs is a mapping such as '{{step_size: 0.01}}', not {sampler_kwargs!r}")
    arguments = dict(to=to, num_candidates=candidates, seed=seed, num_inference_steps=steps)
    arguments |= dict(guidance_scale=guidance, free_attributes=free, label_sampler=label_sampler)
    arguments |= dict(sampler=sampler, sampler_kwargs=settings)
    if rows is None:
        arguments["num_images"] = 16 if num_images is None else num_images
    _draw(model, request, output, as_json, axes=None if rows is None else (rows, columns), **arguments)


@app.command()
def edit(
    model: Model,
    image: Annotated[Path, typer.Argument(parser=path, help="Image file.")],
    request: Annotated[str, typer.Argument(help='What shall change, such as "Smiling & ~Hat"; all else is held.')],
    num_images: Annotated[int, typer.Option(min=1, help="Number of variants.")] = 1,
    strength: Annotated[float | None, typer.Option(help="Share of noise to start from; a mask makes it 1.")] = None,
    mask: Annotated[Path | None, typer.Option(parser=path, help="Image, white where pixels are drawn anew.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of what shall change.")] = None,
    hold: Annotated[float | None, typer.Option(help="Weight of what shall not.")] = None,
    output: ImageFile = "edited.png",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the chain from pure noise.")] = None,
    as_json: Json = False,
) -> None:
    """Change attributes of an image, or fill in what a mask covers."""
    check_image_file(output)
    images = dict(image=open_image(image), mask=None if mask is None else open_image(mask))
    arguments = dict(num_images=num_images, strength=strength, seed=seed, num_inference_steps=steps)
    _draw(model, request, output, as_json, guidance_scale=guidance, hold_scale=hold, **images, **arguments)


def _draw(
    model: str, request: str, output: Path, as_json: bool, axes: tuple[str, str] | None = None, **arguments
) -> None:
    """Images of one request, or of its grid over two axes, as a picture; `arguments` are the pipeline's."""
    pipe = AttributeConditionalGenerationPipeline(load_model(model))
    requests: str | list[str] = request
    layout: dict = {}
    if axes:
        requests, row_labels, column_labels = crossed(*axes, request, pipe.model.config)
        layout = dict(num_columns=len(column_labels), row_labels=row_labels, column_labels=column_labels)
    steps = arguments["num_inference_steps"]
    if "image" in arguments:
        is_masked = arguments["mask"] is not None
        settings = pipe.model.edit_settings(arguments["strength"], is_masked, steps)
    else:
        settings = pipe.model.chain_settings(steps)
    num_steps = settings["num_steps"]
    with ProgressBars() as progress:
        drawn = pipe(requests, callback=lambda *state: progress("steps", state[-1].step + 1, num_steps), **arguments)
    if axes:
        drawn = [{"request": each} | item for each, (item,) in zip(requests, drawn)]
    output.parent.mkdir(parents=True, exist_ok=True)
    scale = max(1, 96 // pipe.model.config.image_size)
    image_grid([item.pop("image") for item in drawn], scale=scale, **layout).save(output)
    if as_json:
        print_json({"request": request, "output": str(output), "images": drawn})
    else:
        say(f"wrote {output}")


@app.command(
    epilog="The energy is -log p(x) up to a constant of the model, with --given -log p(x, y): the lower, the more an "
    "image is like the training images, and shows what is given. Compare it between images of one model. "
    "A file that cannot be read ends the command, after the results of those before it."
)
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(parser=path, help="Image files.")],
    given: Annotated[str | None, typer.Option(help='What is known of them, such as "Male & ~Hat".')] = None,
    as_json: Json = False,
) -> None:
    """Attribute probabilities and energy of images. Lower energy: more like the training images."""
    for file in images:
        if not file.is_file():
            raise ValueError(f"there is no image file {str(file)!r}")
    network, processor = load_model(model), JemImageProcessor.from_pretrained(model)
    known = parse_request(given or "", network.config)
    results = []
    try:
        for files, pixels in _batches(images, processor):
            for file, result in zip(files, _predictions(network, pixels.to(network.device), known)):
                results.append({"image": str(file), **result})
                if not as_json:
                    typer.echo(f"{file}  energy {result['energy']:.2f}{_strangeness(result)}")
                    for name, p in sorted(result["probabilities"].items(), key=lambda item: -item[1]):
                        typer.echo(f"  {p:6.3f}  {name}")
    finally:
        if as_json and results:
            print_json(results)


def _batches(files: list[Path], processor: JemImageProcessor) -> Iterator[tuple[list[Path], torch.Tensor]]:
    """Files and their pixels (B, C, H, W); those before a file that cannot be read come before its error."""
    pixels, start = [], 0
    for i, file in enumerate(files):
        try:
            pixels.append(processor(read_image(file), return_tensors="pt")["pixel_values"])
        except ValueError:
            if pixels:
                yield files[start:i], torch.cat(pixels)
            raise
        if len(pixels) == BATCH_SIZE or i == len(files) - 1:
            yield files[start : i + 1], torch.cat(pixels)
            pixels, start = [], i + 1


def _strangeness(result: dict) -> str:
    return f", stranger than {result['outlier_score']:.1%} of the training images" if "outlier_score" in result else ""


@torch.no_grad()
def _predictions(model: JemModel, pixels: torch.Tensor, known: list[int]) -> list[dict]:
    """`energy` and `probabilities` of images, given the K labels that are `known` (-1 where one is not)."""
    distribution = model.label_distribution(model.encode(pixels))
    labels = torch.tensor([known] * len(pixels), device=pixels.device)
    energies = -distribution.log_joint(labels)
    scores = model.log_odds(distribution.marginal_logits(labels)[0]).sigmoid()
    results = [
        {"energy": energy, "probabilities": dict(zip(model.config.label_names, row))}
        for energy, row in zip(energies.tolist(), scores.tolist())
    ]
    if model.has_outlier_score:
        for result, score in zip(results, model.outlier_score(pixels).tolist()):
            result["outlier_score"] = score
    return results
