"""
A page to make, tag, edit and compare images: `jem-hf demo`.

As `app.py` of a Hugging Face Space, with a checkpoint in the folder `model` beside it, this file is the whole app.
"""

import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_pil_to_cache

import jem_hf.demo
from jem_hf.demo.actions import WHOLE, Actions, compare, shared_labels
from jem_hf.demo.chain import MAX_GUIDANCE, MAX_IMAGES, MAX_SEED, MAX_STEPS, Drawing
from jem_hf.demo.html import readable
from jem_hf.hub.zoo import list_models, model_info

FILES = Path(jem_hf.demo.__file__).parent  # not beside this file, which may be a Space's app.py
EITHER = ""
MAX_WAITING = 24  # visitors in the queue
MAX_FILE_SIZE = "10mb"
FONTS = ["system-ui", "sans-serif"]
MONOSPACE = ["ui-monospace", "monospace"]


def create_page(model: str) -> gr.Blocks:
    """The page of one model: zoo name, Hub id or folder."""
    actions = Actions(model)
    with gr.Blocks(
        title=f"jem_hf: {actions.default.model}", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as page:
        gr.Markdown(
            f"# {actions.default.model}\nOne network that draws images for the attributes you choose, "
            "names the attributes of yours, and changes them."
        )
        with gr.Tab("Make"):
            picture = _make(page, actions)
            if len(actions.config.attributes) > 1:
                with gr.Accordion("A grid of two attributes", open=False):
                    _grid(actions)
        with gr.Tab("Tag"):
            _tag(actions, picture)
        with gr.Tab("Edit"):
            _edit(actions, picture)
        names = _comparable(model)
        if len(names) > 1:
            with gr.Tab("Compare"):
                _compare(names)
        page.load(fn=None, js=(FILES / "labels.js").read_text())
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def launch(page: gr.Blocks, **kwargs):
    """Serve the page; keywords go to `gr.Blocks.launch`. Nothing is asked of any other host."""
    theme = gr.themes.Soft(primary_hue="indigo", secondary_hue="indigo", font=FONTS, font_mono=MONOSPACE)
    looks = dict(theme=theme, css_paths=FILES / "page.css", footer_links=[])
    return page.launch(**looks, max_file_size=MAX_FILE_SIZE, ssr_mode=False, share=False, **kwargs)


@contextmanager
def messages():
    """Bad input makes a message on the page. Also a decorator of functions."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def _make(page: gr.Blocks, actions: Actions) -> gr.State:
    """The tab "Make"; returns where its newest image is kept."""
    default, picture = actions.default, gr.State()
    with gr.Row():
        with gr.Column(scale=6, min_width=300):
            request = gr.Textbox(
                label="Request",
                placeholder="Anything. Choose attributes, or write: Hat & (Beard | ~Smiling)",
                max_length=2000,
            )
            with gr.Row():
                make = gr.Button("Make", variant="primary", min_width=90)
                stop = gr.Button("Stop", variant="stop", interactive=False, min_width=90)
                surprise = gr.Button("Surprise me", min_width=130)
            presets = gr.Dropdown([*actions.presets], value=None, label="Presets", visible=bool(actions.presets))
            made = gr.HTML(elem_id="made")
        with gr.Column(scale=4, min_width=300):
            with gr.Row():
                num_images = gr.Slider(1, MAX_IMAGES, default.num_images, step=1, label="Images", min_width=140)
                seed = _seed()
            with gr.Accordion("Chain", open=False):
                steps = gr.Slider(1, MAX_STEPS, default.num_inference_steps, step=1, label="Steps")
                guidance = gr.Slider(
                    0, MAX_GUIDANCE, default.guidance_scale, step=0.5, label="Guidance: more obeys more, varies less"
                )
            with gr.Group(elem_classes="switches"):
                switches = [_switch(name, actions) for name in actions.config.attributes]

    controls = [request, seed, num_images, steps, guidance]
    draw, halt, read_link = _drawing(actions)
    request_of = messages()(lambda *values: actions.request_of(values))

    def then_draw(event):
        chain = dict(concurrency_id="chain", show_progress="hidden")
        chain["trigger_mode"] = "always_last"  # what is changed while a chain runs is drawn after it
        event.success(draw, controls, [made, picture, stop], **chain)

    quick = dict(show_progress="hidden", concurrency_limit=None)
    set_switches = dict(fn=messages()(actions.values_of), inputs=request, outputs=switches, **quick)
    then_draw(page.load(read_link, outputs=[*controls, *switches], **quick))
    then_draw(gr.on([make.click, request.submit], **set_switches))
    then_draw(surprise.click(actions.surprise, outputs=[request, seed], **quick).success(**set_switches))
    chosen = presets.input(lambda name: actions.presets.get(name, ""), presets, request, **quick)
    then_draw(chosen.success(**set_switches))
    changed = [switch.input for switch in switches]
    then_draw(gr.on(changed, request_of, switches, request, trigger_mode="always_last", **quick))
    stop.click(halt, **quick)
    page.unload(halt)
    return picture


def _drawing(actions: Actions) -> tuple[Callable, Callable, Callable]:
    """What draws images and what stops that, by visitor, and what reads the settings of a link."""
    stops: dict[str, threading.Event] = {}

    def draw(request, seed, num_images, steps, guidance, visit: gr.Request):
        stop = stops[visit.session_hash] = threading.Event()
        try:
            with messages():
                drawing = Drawing(actions.default.model, request.strip(), seed, num_images, steps, guidance)
                for content, image in actions.make(drawing, stop):
                    yield content, image, gr.update(interactive=image is None)
        finally:
            stops.pop(visit.session_hash, None)

    def halt(visit: gr.Request):
        if visit.session_hash in stops:
            stops[visit.session_hash].set()

    @messages()
    def read_link(visit: gr.Request):
        first = replace(actions.default, request=next(iter(actions.presets.values()), ""))
        drawing = Drawing.from_query(dict(visit.query_params), first)
        arguments = drawing.arguments()  # in the order of the controls
        return drawing.request, *arguments.values(), *actions.values_of(drawing.request)

    return draw, halt, read_link


def _seed() -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=110)


def _switch(name: str, actions: Actions):
    """Yes, no or either; or one of the values of an attribute that is not binary."""
    values = actions.config.values(name)
    if name in actions.config.attribute_values:
        choices = [("either", EITHER), *_choices(values)]
        return gr.Dropdown(choices, value=EITHER, label=readable(name), elem_classes="choice")
    choices = [("either", EITHER), ("yes", "True"), ("no", "False")]
    return gr.Radio(choices, value=EITHER, label=readable(name), elem_classes="switch")


def _image_file(picture: gr.State) -> gr.File:
    """Where an image file is dropped, or the newest image of the tab "Make" is taken."""
    file = gr.File(label="Image: PNG, JPEG, WebP, GIF or BMP, up to 10 MB", type="filepath", height=150)

    @messages()
    def take(image):
        if image is None:
            raise ValueError("make an image first")
        return save_pil_to_cache(image, cache_dir=file.GRADIO_CACHE, name="made", format="png")

    gr.Button("Take the first image of Make", size="sm").click(take, picture, file, show_progress="hidden")
    return file


def _grid(actions: Actions) -> None:
    names = sorted(actions.config.attributes, key=lambda name: -len(actions.config.values(name)))
    with gr.Row():
        rows, columns = (
            gr.Dropdown(
                _choices(actions.config.attributes), value=name, label=label, info=info, allow_custom_value=True
            )
            for name, label, info in zip(
                names[1::-1], ("Rows", "Columns"), ("A value a row.", "Or some: Hair in (red, black).")
            )
        )
        request = gr.Textbox(label="All images show", placeholder="Anything", max_length=2000)
        seed = _seed()
    button = gr.Button("Draw the grid", variant="primary")
    grid = gr.Image(label="One noise, all combinations", interactive=False, format="png", elem_id="grid")
    button.click(messages()(actions.grid), [rows, columns, request, seed], grid, concurrency_id="chain")


def _part() -> list[gr.Slider]:
    """Which square of an image the model sees, for pictures that are cut otherwise than those of training."""
    with gr.Accordion("Part of the image", open=False), gr.Row():
        names = ("Centre, across", "Centre, down", "Side")
        lows = (0, 0, 0.05)
        return [
            gr.Slider(low, 1, value, step=0.01, label=name, min_width=140)
            for name, low, value in zip(names, lows, WHOLE)
        ]


def _tag(actions: Actions, picture: gr.State) -> None:
    file, part = _image_file(picture), _part()
    tagged = gr.HTML(elem_id="tagged")
    tag = messages()(lambda path, *crop_to: actions.tag(path, *crop_to) if path else "")
    events = [each.change for each in (file, *part)]
    gr.on(events, tag, [file, *part], tagged, concurrency_id="chain", trigger_mode="always_last")


def _edit(actions: Actions, picture: gr.State) -> None:
    labels = _choices(actions.config.label_names)
    edits = actions.pipeline.model.edits
    binary = _choices(name for name, values in actions.config.named_values.items() if values is None)
    with gr.Row():
        with gr.Column(min_width=300):
            file, part = _image_file(picture), _part()
            on = gr.Dropdown(labels, value=[], multiselect=True, label="Switch on")
            off = gr.Dropdown(binary, value=[], multiselect=True, label="Switch off")
            strength = gr.Slider(0.05, 1, edits.strength, step=0.05, label="Strength: more changes more")
            seed = _seed()
            button = gr.Button("Edit", variant="primary")
        with gr.Column(min_width=300):
            slider = gr.ImageSlider(label="Before and after", interactive=False, format="png", buttons=[])
            edited = gr.HTML(elem_id="edited")
    inputs = [file, on, off, strength, seed, *part]
    button.click(messages()(actions.edit), inputs, [slider, edited], concurrency_id="chain")


def _comparable(model: str) -> list[str]:
    """This model, and those of the zoo whose weights are here."""
    here = [name for name in list_models() if (model_info(name).folder / "model.safetensors").is_file()]
    return list(dict.fromkeys([model, *here]))


def _compare(names: list[str]) -> None:
    with gr.Row():
        models = [gr.Dropdown(names, value=names[i], label=f"Model {i + 1}", min_width=140) for i in (0, 1)]
        num_images = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images", min_width=140)
        seed = _seed()
    labels = _choices(shared_labels(names[:2]))
    with gr.Row():
        on = gr.Dropdown(labels, value=[], multiselect=True, label="Yes", info="Attributes that both models know.")
        off = gr.Dropdown(labels, value=[], multiselect=True, label="No", info="Of the same attributes.")
    button = gr.Button("Compare", variant="primary")
    compared = gr.HTML(elem_id="compared")

    @messages()
    def offer(*models):
        return [gr.update(choices=_choices(shared_labels(models)), value=[]) for _ in (on, off)]

    @messages()
    def draw(first, second, on, off, num_images, seed):
        return compare([first, second], on, off, Drawing("", seed=seed, num_images=num_images))

    gr.on([model.change for model in models], offer, models, [on, off], show_progress="hidden")
    button.click(draw, [*models, on, off, num_images, seed], compared, concurrency_id="chain")


def _choices(names: Iterable[str]) -> list[tuple[str, str]]:
    """Of a dropdown: what it shows and what it means."""
    return [(readable(name), name) for name in names]


if __name__ == "__main__":
    launch(create_page(str(Path(__file__).with_name("model"))))
