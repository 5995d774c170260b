"""What the page does: make, tag, edit and compare images. It gives HTML and images, and knows no page."""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from html import escape
from pathlib import Path

import torch
from PIL import Image

from ..models.configuration_jem import JemConfig
from ..models.hub_jem import source_folder
from ..models.image_processing_jem import JemImageProcessor, read_image
from ..models.modeling_jem import JemModel
from ..models.pipeline_jem import AttributeConditionalGenerationPipeline
from ..models.requests_jem import format_request, parse_composition, parse_request
from . import html
from .chain import MAX_GUIDANCE, MAX_SEED, MAX_STEPS, Drawing, watch

MAX_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PRESETS = {
    "Sunny smile": "Smiling & Sunglasses & Hat",
    "Professor": "Eyeglasses & Beard & Gray_Hair",
    "Hat and moustache (never seen together)": "Hat & Moustache",
    "In love": "Heart_Eyes & Smiling & Rosy_Cheeks",
    "Red afro": "Afro & Red_Hair",
    "Smiling man": "Male & Smiling",
    "Bangs and black hair": "Bangs & Black_Hair & ~Male",
    "Blond, with earrings": "Blond_Hair & Wearing_Earrings & Smiling",
    "Not so young": "~Young & ~Smiling",
}


class Actions:
    """
    What a visitor can do with one model.

    Args:
        model: Zoo name, Hub id or folder.
    """

    def __init__(self, model: str):
        self.pipeline = load_pipeline(model)
        self.config = self.pipeline.model.config
        self.report = load_report(self.pipeline.model)
        self.default = Drawing(
            model=display_name(model),
            num_inference_steps=min(self.config.num_inference_steps, MAX_STEPS),
            guidance_scale=min(max(0.0, float(self.config.guidance_scale)), MAX_GUIDANCE),
        )
        self.presets = {name: request for name, request in PRESETS.items() if is_request(request, self.config)}
        for combination in self.config.novel_combinations:
            request = format_request(parse_request(combination, self.config), self.config)
            self.presets[f"{html.readable(request)} (never seen together)"] = request

    def request_of(self, values: list[str]) -> str:
        """The request of one value an attribute, `""` where it is left open."""
        given = {name: value for name, value in zip(self.config.attributes, values) if value}
        return format_request(parse_request(given, self.config), self.config)

    def values_of(self, request: str) -> list[str]:
        """The inverse of `request_of`; all open where a request has alternatives or weights."""
        composition = parse_composition(request, self.config)
        if len(composition.alternatives) > 1 or any(weight != 1 for weight in composition.weights):
            return [""] * len(self.config.attributes)
        labels = zip(self.config.attributes, composition.alternatives[0])
        return [self.config.values(name)[label] if label >= 0 else "" for name, label in labels]

    def surprise(self) -> tuple[str, int]:
        """A request that goes together in the training data, and a seed."""
        labels = self.pipeline.model.label_prior.sample(
            torch.full((1, len(self.config.attributes)), -1, device=self.pipeline.model.device)
        )[0]
        striking = (labels > 0).nonzero()[:, 0].tolist() or list(range(len(labels)))
        kept = [striking[i] for i in torch.randperm(len(striking))[:4]]
        request = format_request([label if k in kept else -1 for k, label in enumerate(labels.tolist())], self.config)
        return request, torch.randint(MAX_SEED, ()).item()

    def make(self, drawing: Drawing, stop: threading.Event) -> Iterator[tuple[str, Image.Image | None]]:
        """The images while they sharpen, and at the end with all that is known of them, and the first alone."""
        parse_composition(drawing.request, self.config)  # a mistake is told before a thread runs

        def run(callback):
            return self.pipeline(drawing.request, callback=callback, **drawing.arguments())

        chain = watch(run, stop)
        while True:
            try:
                x, energies = next(chain)
            except StopIteration as end:
                drawn, steps_done, energies = end.value
                break
            figures = [html.figure(image, "Image in the making") for image in JemImageProcessor.to_pil(x)]
            yield html.images(figures) + html.energy_curve(energies, drawing.num_inference_steps), None
        curve = html.energy_curve(energies, drawing.num_inference_steps)
        yield results(drawn, drawing, steps_done, self.config) + curve, drawn[0]["image"]

    def tag(self, path: str | None) -> str:
        """What the model sees in an image file."""
        image = open_image(path)
        model = self.pipeline.model
        with torch.no_grad():
            pixels = self.pipeline._pixels(image)
            output = model(pixels)
        rows = sorted(zip(self.config.label_names, output.logits.sigmoid()[0].tolist()), key=lambda row: -row[1])
        seen = html.figure(JemImageProcessor.to_pil(pixels)[0], "The part of your image that the model sees")
        text = f"<p>Energy {output.energy.item():.2f}</p>"
        if quantiles := self.report.get("test_energy_quantiles"):
            text += html.energy_among(output.energy.item(), quantiles)
        bars = html.bars([(html.readable(name), p) for name, p in rows], wide=True)
        return (
            f'<div class="pair"><div class="seen">{seen}<p class="note">The model sees this much, at '
            f"{self.config.image_size}x{self.config.image_size} pixels.</p></div><div>{text}</div></div>"
            f"<h3>Attributes</h3>{bars}{self._calibration()}"
        )

    def _calibration(self) -> str:
        error = self.report.get("prediction", {}).get("ece")
        if error is None:
            return ""
        return (
            '<p class="note">On test images these probabilities are off by '
            f"{100 * error:.2g} percentage points (expected calibration error).</p>"
        )

    def edit(self, path: str | None, on: list[str], off: list[str], strength: float, seed: int):
        """The image before and after an edit, both of one size, and what changed as HTML."""
        request = wanted(on, off, self.config)
        if max(request) < 0:
            raise ValueError("choose at least one attribute to switch on or off")
        before = self.pipeline._pixels(open_image(path))
        replace(self.default, seed=seed)  # checks it
        image = JemImageProcessor.to_pil(before)[0]
        drawn = self.pipeline(format_request(request, self.config), image=image, strength=strength, seed=seed)[0]
        with torch.no_grad():
            logits = self.pipeline.model(before).attribute_logits[0]
        rows = ""
        for (name, p), k in zip(asked(drawn, request, self.config), [k for k, v in enumerate(request) if v >= 0]):
            earlier = logits[k].softmax(-1)[request[k]].item()
            rows += f"<tr><td>{escape(name)}</td><td>{html.percent(earlier)}</td><td>{html.percent(p)}</td></tr>"
        table = f"<table><tr><th>The model sees</th><th>before</th><th>after</th></tr>{rows}</table>"
        settings = {"model": self.default.model, "edit": format_request(request, self.config), "seed": seed}
        file = html.data_url(html.png(drawn["image"], settings | {"strength": strength, "energy": drawn["energy"]}))
        link = f'<p><a href="{file}" download="edited.png">Download PNG</a></p>'
        return (enlarged(image), enlarged(drawn["image"])), table + link


def compare(models: list[str], on: list[str], off: list[str], drawing: Drawing) -> str:
    """The same request and seed by several models, side by side."""
    columns = []
    for name in models:
        pipeline = load_pipeline(name)
        request = format_request(wanted(on, off, pipeline.model.config), pipeline.model.config)
        config = pipeline.model.config
        this = replace(
            drawing,
            model=display_name(name),
            request=request,
            num_inference_steps=min(config.num_inference_steps, MAX_STEPS),
            guidance_scale=min(max(0.0, float(config.guidance_scale)), MAX_GUIDANCE),
        )
        drawn = pipeline(request, **this.arguments())
        content = results(drawn, this, this.num_inference_steps, config, link=False)
        columns.append(f"<section><h3>{escape(this.model)}</h3>{content}</section>")
    return f'<div class="pair">{"".join(columns)}</div>'


def shared_labels(models: list[str]) -> list[str]:
    """What all of these models can be asked for."""
    names = [JemConfig.from_pretrained(name).label_names for name in models]
    return [label for label in names[0] if all(label in others for others in names[1:])]


def results(drawn: list[dict], drawing: Drawing, steps_done: int, config: JemConfig, link: bool = True) -> str:
    """Images with their energies, probabilities and files, and the link that makes them again."""
    requested = parse_composition(drawing.request, config).alternatives
    figures = []
    for i, item in enumerate(drawn):
        settings = asdict(drawing) | {"image": i, "energy": item["energy"]}
        if steps_done < drawing.num_inference_steps:
            settings["stopped_after_steps"] = steps_done
        labels = [max(column) for column in zip(*requested)]
        rows = asked(item, labels, config)
        alt = f"Image {i + 1}: " + (", ".join(name for name, _ in rows) or "no attribute asked for")
        figures.append(html.result(item["image"], settings, f"{drawing.model}-{drawing.seed}-{i}.png", rows, alt))
    text = html.images(figures)
    if steps_done < drawing.num_inference_steps:
        text += f'<p class="note">Stopped after {steps_done} of {drawing.num_inference_steps} steps.</p>'
    elif link:
        text += (
            f'<p class="note"><a class="share" href="{escape(drawing.query())}">Link to these images</a> '
            '<button type="button" class="copy" '
            'onclick="navigator.clipboard.writeText(this.previousElementSibling.href)">Copy</button></p>'
        )
    return text


def asked(item: dict, labels: list[int], config: JemConfig) -> list[tuple[str, float]]:
    """
    What an image was asked to show, and the model's own probabilities of it.

    Args:
        item: An image as the pipeline returns it.
        labels: One an attribute, -1 for those that nobody asked for; the item knows which of several values it shows.
    """
    rows = []
    for name, label in zip(config.attributes, labels):
        value, p = item["attributes"][name], item["probabilities"][name]
        if label < 0 or value is None:
            continue
        if name in config.attribute_values:
            rows.append((f"{html.readable(name)}: {html.readable(value)}", p[value]))
        else:
            rows.append((html.readable(name) if value else f"no {html.readable(name)}", p if value else 1 - p))
    return rows


def wanted(on: list[str], off: list[str], config: JemConfig) -> list[int]:
    """The labels of `config.label_names` that are switched on and off, -1 for all others."""
    if both := sorted(set(on) & set(off)):
        raise ValueError(f"{', '.join(map(html.readable, both))}: switched on and off at once")
    attribute_and_value = {name: (name, True) for name in config.attributes}
    for name, values in config.attribute_values.items():
        attribute_and_value |= {f"{name}={value}": (name, value) for value in values}
    given = {}
    for label in on:
        name, value = attribute_and_value[label]
        if name in given:
            raise ValueError(f"{html.readable(name)} has one value: switch only one on")
        given[name] = value
    for label in off:
        name, value = attribute_and_value[label]
        if value is not True:
            raise ValueError(f"{html.readable(label)}: switch another value on")
        given[name] = False
    return parse_request(given, config)


def is_request(request: str, config: JemConfig) -> bool:
    try:
        parse_composition(request, config)
    except ValueError:
        return False
    return True


def open_image(path: str | None) -> Image.Image:
    """An image file in RGB. Raises `ValueError` for what is none, or too large."""
    if path is None:
        raise ValueError("drop an image first")
    try:
        return read_image(path, FORMATS, MAX_PIXELS)
    except ValueError as error:  # which names a path of this machine
        raise ValueError(
            "this file is no image that can be read: give a PNG, JPEG, WebP, GIF or BMP of at most "
            f"{MAX_PIXELS / 1e6:g} million pixels"
        ) from error


def enlarged(image: Image.Image, size: int = 384) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


def display_name(model: str) -> str:
    """A folder's name without its path, other names as they are."""
    return Path(model).resolve().name if Path(model).is_dir() else model


@cache
def load_pipeline(model: str) -> AttributeConditionalGenerationPipeline:
    """The pipeline of a zoo name, Hub id or folder, on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AttributeConditionalGenerationPipeline(JemModel.from_pretrained(model).to(device))


def load_report(model: JemModel) -> dict:
    """What was measured of a model: the `report.json` beside its weights, or nothing."""
    folder = source_folder(model)
    path = folder and folder / "report.json"
    return json.loads(path.read_text()) if path and path.is_file() else {}
