"""What the page does: make, tag, edit and compare images. It gives HTML and images, and knows no page."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from html import escape
from pathlib import Path

import torch
from PIL import Image

from ..models.configuration_jem import JemConfig
from ..models.hub_jem import source_folder
from ..models.image_processing_jem import JemImageProcessor, cropped, read_image
from ..models.modeling_jem import JemModel
from ..models.pipeline_jem import AttributeConditionalGenerationPipeline
from ..models.requests_jem import crossed, format_request, parse_composition, parse_request
from ..plots import image_grid
from . import html
from .chain import MAX_SEED, Drawing, watch

MAX_PIXELS = 40_000_000
MAX_CELLS = 256  # of a grid
WHOLE = (0.5, 0.5, 1.0)  # centre and side of the part of an image that is looked at
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
        model (`str`): Zoo name, Hub id or folder.
    """

    def __init__(self, model: str):
        self.pipeline = load_pipeline(model)
        self.config = self.pipeline.model.config
        folder = source_folder(self.pipeline.model)
        report = folder and folder / "report.json"
        self.report = json.loads(report.read_text()) if report and report.is_file() else {}
        self.default = Drawing.of(display_name(model), self.config)
        self.presets = {}
        for name, request in PRESETS.items():
            with suppress(ValueError):  # of attributes that this model does not know
                parse_composition(request, self.config)
                self.presets[name] = request
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
        model = self.pipeline.model
        labels = model.label_prior.sample(torch.full((1, len(self.config.attributes)), -1, device=model.device))[0]
        striking = (labels > 0).nonzero()[:, 0].tolist() or list(range(len(labels)))
        kept = [striking[i] for i in torch.randperm(len(striking))[:4]]
        request = format_request([label if k in kept else -1 for k, label in enumerate(labels.tolist())], self.config)
        return request, torch.randint(MAX_SEED, ()).item()

    def make(self, drawing: Drawing, stop: threading.Event) -> Iterator[tuple[str, Image.Image | None]]:
        """The images while they sharpen, and at the end with all that is known of them, and the first alone."""
        parse_composition(drawing.request, self.config)  # a mistake raises before a thread runs

        def run(callback):
            return self.pipeline(drawing.request, callback=callback, **drawing.arguments())

        def show(x, energies):
            figures = [html.figure(image, "Image in the making") for image in JemImageProcessor.to_pil(x)]
            return html.images(figures) + html.energy_curve(energies, drawing.num_inference_steps), None

        drawn, steps_done, energies = yield from watch(run, stop, show)
        curve = html.energy_curve(energies, drawing.num_inference_steps)
        yield results(drawn, drawing, steps_done, self.config) + curve, drawn[0]["image"]

    def grid(self, rows: str, columns: str, request: str, seed: int) -> Image.Image:
        """An image for each combination of the values of two attributes, all of one noise."""
        requests, row_labels, column_labels = crossed(rows, columns, request or "", self.config)
        if len(requests) > MAX_CELLS:
            raise ValueError(f"{len(requests)} images are more than {MAX_CELLS}: name some values, 'A in (b, c)'")
        drawing = replace(self.default, seed=seed)  # a seed out of its range raises
        drawn = self.pipeline(requests, seed=drawing.seed)
        row_labels, column_labels = ([html.readable(label) for label in each] for each in (row_labels, column_labels))
        images = [item["image"] for (item,) in drawn]
        return image_grid(images, len(column_labels), row_labels=row_labels, column_labels=column_labels)

    def part(self, path: str | None, *crop_to: float) -> torch.Tensor:
        """The square of an image file that the model sees, (1, C, H, W) in [-1, 1]; see `square_at`."""
        image, size = open_image(path), (self.config.image_size,) * 2
        own = None if image.size == size else self.pipeline.model.image_processor().crop_to
        return self.pipeline._pixels(cropped(image, own if crop_to == WHOLE else crop_to))

    def tag(self, path: str | None, *crop_to: float) -> str:
        """What the model sees in an image file, or in a part of it."""
        pixels = self.part(path, *crop_to or WHOLE)
        with torch.no_grad():
            output = self.pipeline.model(pixels)
        energy, scores = output.energy.item(), output.logits.sigmoid()[0].tolist()
        rows = sorted(zip(map(html.readable, self.config.label_names), scores), key=lambda row: -row[1])
        size = f"{self.config.image_size}x{self.config.image_size}"
        seen = html.figure(JemImageProcessor.to_pil(pixels)[0], "The part of your image that the model sees")
        seen += html.note(f"The model sees this much, at {size} pixels.")
        text = f"<p>Energy {energy:.2f}</p>"
        if self.pipeline.model.has_outlier_score:
            text = html.strangeness(self.pipeline.model.outlier_score(pixels).item())
        elif quantiles := self.report.get("test_energy_quantiles"):
            text += html.energy_among(energy, quantiles)
        bars = html.bars(rows, wide=True)
        if ece := self.report.get("prediction", {}).get("ece"):
            off = f"{100 * ece:.2g} percentage points (expected calibration error)"
            bars += html.note(f"On test images these probabilities are off by {off}.")
        return f'<div class="pair"><div class="seen">{seen}</div><div>{text}</div></div><h3>Attributes</h3>{bars}'

    def edit(
        self, path: str | None, on: list[str], off: list[str], strength: float, seed: int, *crop_to: float
    ) -> tuple[tuple[Image.Image, Image.Image], str]:
        """An image, or a part of it, before and after an edit, both of one size, and what changed as HTML."""
        labels = wanted(on, off, self.config)
        if max(labels) < 0:
            raise ValueError("choose at least one attribute to switch on or off")
        request = format_request(labels, self.config)
        pixels = self.part(path, *crop_to or WHOLE)
        before = JemImageProcessor.to_pil(pixels)[0]
        drawing = replace(self.default, request=request, seed=seed)  # a seed out of its range raises
        after = self.pipeline(request, image=before, strength=strength, seed=drawing.seed)[0]
        with torch.no_grad():
            probabilities = self.pipeline.model(pixels).attribute_logits[0].softmax(-1)
        earlier = [probabilities[k, label].item() for k, label in enumerate(labels) if label >= 0]
        rows = [(name, p, q) for (name, q), p in zip(asked(after, labels, self.config), earlier)]
        settings = dict(model=drawing.model, edit=request, seed=seed, strength=strength, energy=after["energy"])
        page = html.changes(rows) + f"<p>{html.download(after['image'], settings, 'edited.png')}</p>"
        return (enlarged(before), enlarged(after["image"])), page


def compare(models: list[str], on: list[str], off: list[str], drawing: Drawing) -> str:
    """The same request, seed and number of images by several models, side by side."""
    columns = []
    for name in models:
        pipeline = load_pipeline(name)
        config = pipeline.model.config
        request = format_request(wanted(on, off, config), config)
        same = dict(request=request, seed=drawing.seed, num_images=drawing.num_images)
        this = replace(Drawing.of(display_name(name), config), **same)
        drawn = pipeline(request, **this.arguments())
        content = results(drawn, this, this.num_inference_steps, config, link=False)
        columns.append(f"<section><h3>{escape(this.model)}</h3>{content}</section>")
    return f'<div class="pair">{"".join(columns)}</div>'


def shared_labels(models: list[str]) -> list[str]:
    """What all of these models can be asked for."""
    first, *others = [JemConfig.from_pretrained(name).label_names for name in models]
    return [label for label in first if all(label in names for names in others)]


def results(drawn: list[dict], drawing: Drawing, steps_done: int, config: JemConfig, link: bool = True) -> str:
    """Images with their energies, probabilities and files, and the link that makes them again."""
    settings, is_whole = asdict(drawing), steps_done >= drawing.num_inference_steps
    if not is_whole:
        settings["stopped_after_steps"] = steps_done
    # the labels that any alternative names, of which an image shows its own
    labels = [max(column) for column in zip(*parse_composition(drawing.request, config).alternatives)]
    figures = []
    for i, item in enumerate(drawn):
        rows = asked(item, labels, config)
        alt = f"Image {i + 1}: " + (", ".join(name for name, _ in rows) or "no attribute asked for")
        about = settings | {"image": i, "energy": item["energy"]}
        figures.append(html.result(item["image"], about, f"{drawing.model}-{drawing.seed}-{i}.png", rows, alt))
    if not is_whole:
        end = html.note(f"Stopped after {steps_done} of {drawing.num_inference_steps} steps.")
    else:
        end = html.share_link(drawing.query()) if link else ""
    return html.images(figures) + end


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
    """The labels (K,) of what is switched on and off, both of `config.label_names`; -1 for all others."""
    if both := sorted(set(on) & set(off)):
        raise ValueError(f"{', '.join(map(html.readable, both))}: switched on and off at once")
    parts = {}  # of each label: attribute and value
    for name, values in config.named_values.items():
        parts |= {name: (name, True)} if values is None else {f"{name}={value}": (name, value) for value in values}
    given = {}
    for label in on:
        name, value = parts[label]
        if name in given:
            raise ValueError(f"{html.readable(name)} has one value: switch only one on")
        given[name] = value
    for label in off:
        name, value = parts[label]
        if value is not True:
            raise ValueError(f"{html.readable(label)}: switch another value on")
        given[name] = False
    return parse_request(given, config)


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
