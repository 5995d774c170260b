"""`jem-hf generate`, `edit` and `predict`: from requests to images and back."""

from pathlib import Path
from typing import Annotated

import typer

from .shared import Json, Model, app, clear_errors, load_model, load_with_processor, print_json, say


@app.command()
@clear_errors
def generate(
    model: Model,
    request: Annotated[str, typer.Argument(help='What to draw, such as "Smiling & (Hat | ~Male)".')],
    num_images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 16,
    to: Annotated[str | None, typer.Option(help="Another request: the images go from the one to it.")] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="Draw so many an image, keep the best.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file of the grid.")] = Path("grid.png"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the chain.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; more obeys more.")] = None,
    free: Annotated[str | None, typer.Option(help="Free attributes: complete, gibbs or marginalise.")] = None,
    sampler: Annotated[str | None, typer.Option(help="flow, langevin, mala, hmc, ...")] = None,
    sampler_kwargs: Annotated[str | None, typer.Option(help='Its arguments, such as "{step_size: 0.01}".')] = None,
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
    strength: Annotated[float, typer.Option(help="Share of noise to start from; a mask makes it 1.")] = 0.5,
    mask: Annotated[Path | None, typer.Option(help="Image, white where pixels are drawn anew.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of what shall change.")] = None,
    hold: Annotated[float | None, typer.Option(help="Weight of what shall not.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file of the grid.")] = Path("edited.png"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the chain from pure noise.")] = None,
    as_json: Json = False,
):
    """Change attributes of an image, or fill in what a mask covers."""
    from ..models.image_processing_jem import read_image

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
    from ..models.pipeline_jem import AttributeConditionalGenerationPipeline
    from ..plots import image_grid

    pipe = AttributeConditionalGenerationPipeline(load_model(model))
    steps = arguments["num_inference_steps"]
    if "image" in arguments:
        masked = arguments["mask"] is not None
        settings = pipe.model.edit_settings(1.0 if masked else arguments["strength"], masked, steps)
    else:
        settings = pipe.model.chain_settings(steps)
    with typer.progressbar(length=settings["num_steps"], file=typer.get_text_stream("stderr")) as bar:
        drawn = pipe(request, callback=lambda x, *info: bar.update(1), **arguments)
    output.parent.mkdir(parents=True, exist_ok=True)
    image_grid([item["image"] for item in drawn], scale=max(1, 96 // pipe.model.config.image_size)).save(output)
    if as_json:
        images = [{key: value for key, value in item.items() if key != "image"} for item in drawn]
        print_json({"request": request, "output": str(output), "images": images})
    else:
        say(f"wrote {output}")


def _mapping(option: str, text: str | None) -> dict | None:
    from ..training.recipes import read_yaml

    value = None if text is None else read_yaml(text, option)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{option} is a mapping such as '{{step_size: 0.01}}', not {text!r}")
    return value


@app.command()
@clear_errors
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    given: Annotated[str | None, typer.Option(help='What is known of them, such as "Male & ~Hat".')] = None,
    as_json: Json = False,
):
    """Attribute probabilities and energy of images. Lower energy: more like the training images."""
    import torch

    from ..models.image_processing_jem import read_image
    from ..models.requests_jem import parse_request

    pictures = [read_image(path) for path in images]
    network, processor = load_with_processor(model)
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
        return print_json(results)
    for result in results:
        typer.echo(f"{result['image']}  energy {result['energy']:.2f}")
        for name, p in sorted(result["probabilities"].items(), key=lambda item: -item[1]):
            typer.echo(f"  {p:6.3f}  {name}")
