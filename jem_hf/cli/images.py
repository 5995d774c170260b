"""`jem-hf generate` and `edit`: from requests to images."""

from pathlib import Path
from typing import Annotated

import typer

from ..curation.framing import parse_square
from ..models.image_processing_jem import open_image
from ..models.pipeline_jem import AttributeConditionalGenerationPipeline
from ..models.requests_jem import crossed
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
    sampler: Annotated[str | None, typer.Option(help="flow, ancestral, langevin, mala, hmc, mixed_hmc, ...")] = None,
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
    crop: Annotated[str | None, typer.Option(help="Edit a square of the image: x,y,side as shares of it.")] = None,
    as_json: Json = False,
) -> None:
    """Change attributes of an image, or fill in what a mask covers."""
    check_image_file(output)
    if crop == "auto":
        raise ValueError(f"one image does not tell its crop: jem-hf predict {model} FOLDER --crop auto prints it")
    images: dict = dict(image=open_image(image), mask=None if mask is None else open_image(mask))
    images["crop_to"] = None if crop is None else parse_square(crop)
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
