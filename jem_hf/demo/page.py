"""
A page to make, tag, edit and compare images: `jem-hf demo`.

As `app.py` of a Hugging Face Space, with a checkpoint in the folder `model` beside it, this file is the whole app.
"""

import functools
from dataclasses import replace
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_pil_to_cache

from jem_hf.demo.actions import Actions, compare, shared_labels
from jem_hf.demo.chain import MAX_GUIDANCE, MAX_IMAGES, MAX_SEED, MAX_STEPS, Drawing, Stops
from jem_hf.demo.html import CSS, readable
from jem_hf.hub.zoo import list_models, model_info

EITHER = ""
MAX_WAITING = 24  # visitors in the queue
MAX_FILE_SIZE = "10mb"
FONTS = ["system-ui", "sans-serif"]
MONOSPACE = ["ui-monospace", "monospace"]
# names for screen readers, and arrow keys: Gradio gives each radio button a group of its own
LABELS = """() => {
  for (const group of document.querySelectorAll("fieldset")) {
    const name = group.querySelector("[data-testid=block-info]").textContent.trim();
    group.setAttribute("role", "radiogroup");
    group.setAttribute("aria-label", name);
    group.addEventListener("focusin", () => group.querySelectorAll("input").forEach(input => input.name = name));
  }
  for (const id of ["made", "tagged", "edited", "compared"])
    document.getElementById(id)?.setAttribute("aria-live", "polite");
}"""


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
        with gr.Tab("Tag"):
            _tag(actions, picture)
        with gr.Tab("Edit"):
            _edit(actions, picture)
        names = _comparable(model)
        if len(names) > 1:
            with gr.Tab("Compare"):
                _compare(names)
        page.load(fn=None, js=LABELS)
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def launch(page: gr.Blocks, **kwargs):
    """Serve the page; keywords go to `gr.Blocks.launch`. Nothing is asked of any other host."""
    theme = gr.themes.Soft(primary_hue="indigo", secondary_hue="indigo", font=FONTS, font_mono=MONOSPACE)
    return page.launch(
        theme=theme, css=CSS, footer_links=[], max_file_size=MAX_FILE_SIZE, ssr_mode=False, share=False, **kwargs
    )


def told(action):
    """What is wrong with the input is told in a message on the page."""

    @functools.wraps(action)
    def wrapped(*args, **kwargs):
        try:
            return action(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def told_while(action):
    """The same for a generator."""

    @functools.wraps(action)
    def wrapped(*args, **kwargs):
        try:
            yield from action(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def _make(page: gr.Blocks, actions: Actions) -> gr.State:
    """The tab "Make"; returns where its newest image is kept."""
    default, config, stops = actions.default, actions.config, Stops()
    picture = gr.State()
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
            if actions.presets:
                presets = gr.Dropdown(list(actions.presets), value=None, label="Presets")
            made = gr.HTML(elem_id="made")
        with gr.Column(scale=4, min_width=300):
            with gr.Row():
                num_images = gr.Slider(1, MAX_IMAGES, default.num_images, step=1, label="Images", min_width=140)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=110)
            with gr.Accordion("Chain", open=False):
                steps = gr.Slider(1, MAX_STEPS, default.num_inference_steps, step=1, label="Steps")
                guidance = gr.Slider(
                    0, MAX_GUIDANCE, default.guidance_scale, step=0.5, label="Guidance: more obeys more, varies less"
                )
            with gr.Group(elem_classes="switches"):
                switches = [_switch(name, actions) for name in config.attributes]

    controls = [request, seed, num_images, steps, guidance]
    outputs = [made, picture, stop]

    @told_while
    def draw(request, seed, num_images, steps, guidance, visit: gr.Request):
        drawing = Drawing(default.model, request.strip(), seed, num_images, steps, guidance)
        event = stops.start(visit.session_hash)
        try:
            for content, image in actions.make(drawing, event):
                yield content, image, gr.update(interactive=image is None)
        finally:
            stops.end(visit.session_hash)

    def halt(visit: gr.Request):
        stops.stop(visit.session_hash)

    @told
    def read_link(visit: gr.Request):
        drawing = Drawing.from_query(dict(visit.query_params), first)
        values = actions.values_of(drawing.request)
        return (
            drawing.request,
            drawing.seed,
            drawing.num_images,
            drawing.num_inference_steps,
            drawing.guidance_scale,
            *values,
        )

    first = replace(default, request=next(iter(actions.presets.values()), ""))
    chain = dict(inputs=controls, outputs=outputs, concurrency_id="chain", show_progress="hidden")
    chain["trigger_mode"] = "always_last"  # what is changed while a chain runs is drawn after it
    values_of, request_of = told(actions.values_of), told(lambda *values: actions.request_of(values))
    quick = dict(show_progress="hidden", concurrency_limit=None)

    page.load(read_link, outputs=[*controls, *switches], **quick).success(draw, **chain)
    page.unload(halt)
    make.click(values_of, request, switches, **quick).success(draw, **chain)
    request.submit(values_of, request, switches, **quick).success(draw, **chain)
    stop.click(halt, **quick)
    surprise.click(actions.surprise, outputs=[request, seed], **quick).success(
        values_of, request, switches, **quick
    ).success(draw, **chain)
    if actions.presets:
        presets.input(lambda name: actions.presets.get(name, ""), presets, request, **quick).success(
            values_of, request, switches, **quick
        ).success(draw, **chain)
    gr.on(
        [switch.input for switch in switches],
        request_of,
        switches,
        request,
        trigger_mode="always_last",
        **quick,
    ).success(draw, **chain)
    return picture


def _switch(name: str, actions: Actions):
    """Yes, no or either; or one of the values of an attribute that is not binary."""
    values = actions.config.values(name)
    if name in actions.config.attribute_values:
        choices = [("either", EITHER), *((readable(value), value) for value in values)]
        return gr.Dropdown(choices, value=EITHER, label=readable(name), elem_classes="choice")
    choices = [("either", EITHER), ("yes", "True"), ("no", "False")]
    return gr.Radio(choices, value=EITHER, label=readable(name), elem_classes="switch")


def _image_file(picture: gr.State) -> gr.File:
    """Where an image file is dropped, or the newest image of the tab "Make" is taken."""
    file = gr.File(label="Image: PNG, JPEG, WebP, GIF or BMP, up to 10 MB", type="filepath", height=150)

    @told
    def take(image):
        if image is None:
            raise ValueError("make an image first")
        return save_pil_to_cache(image, cache_dir=file.GRADIO_CACHE, name="made", format="png")

    gr.Button("Take the first image of Make", size="sm").click(take, picture, file, show_progress="hidden")
    return file


def _tag(actions: Actions, picture: gr.State) -> None:
    file = _image_file(picture)
    tagged = gr.HTML(elem_id="tagged")
    file.change(told(lambda path: actions.tag(path) if path else ""), file, tagged, concurrency_id="chain")


def _edit(actions: Actions, picture: gr.State) -> None:
    labels = [(readable(label), label) for label in actions.config.label_names]
    binary = [
        (readable(name), name) for name in actions.config.attributes if name not in actions.config.attribute_values
    ]
    with gr.Row():
        with gr.Column(min_width=300):
            file = _image_file(picture)
            on = gr.Dropdown(labels, value=[], multiselect=True, label="Switch on")
            off = gr.Dropdown(binary, value=[], multiselect=True, label="Switch off")
            strength = gr.Slider(0.05, 1, 0.5, step=0.05, label="Strength: more changes more")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            button = gr.Button("Edit", variant="primary")
        with gr.Column(min_width=300):
            slider = gr.ImageSlider(label="Before and after", interactive=False, format="png", buttons=[])
            edited = gr.HTML(elem_id="edited")
    button.click(told(actions.edit), [file, on, off, strength, seed], [slider, edited], concurrency_id="chain")


def _comparable(model: str) -> list[str]:
    """This model, and those of the zoo whose weights are here."""
    here = [name for name in list_models() if (model_info(name).folder / "model.safetensors").is_file()]
    return list(dict.fromkeys([model, *here]))


def _compare(names: list[str]) -> None:
    with gr.Row():
        models = [gr.Dropdown(names, value=names[i], label=f"Model {i + 1}", min_width=140) for i in (0, 1)]
        num_images = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images", min_width=140)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=110)
    labels = _choices(names[:2])
    with gr.Row():
        on = gr.Dropdown(labels, value=[], multiselect=True, label="Yes", info="Attributes that both models know.")
        off = gr.Dropdown(labels, value=[], multiselect=True, label="No", info="Of the same attributes.")
    button = gr.Button("Compare", variant="primary")
    compared = gr.HTML(elem_id="compared")

    @told
    def offer(*models):
        return [gr.update(choices=_choices(models), value=[]) for _ in (on, off)]

    @told
    def draw(first, second, on, off, num_images, seed):
        return compare([first, second], on, off, Drawing("", seed=seed, num_images=num_images))

    gr.on([model.change for model in models], offer, models, [on, off], show_progress="hidden")
    button.click(draw, [*models, on, off, num_images, seed], compared, concurrency_id="chain")


def _choices(models) -> list[tuple[str, str]]:
    return [(readable(label), label) for label in shared_labels(models)]


if __name__ == "__main__":
    launch(create_page(str(Path(__file__).with_name("model"))))
