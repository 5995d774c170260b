"""What the page draws: settings that make an image again, and chains that are watched and stopped."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from queue import SimpleQueue
from urllib.parse import urlencode

from ..models.configuration_jem import JemConfig

MAX_IMAGES = 16
MAX_STEPS = 200
MAX_GUIDANCE = 20.0
MAX_SEED = 2**31 - 1
RANGES = {
    "seed": (0, MAX_SEED),
    "num_images": (1, MAX_IMAGES),
    "num_inference_steps": (1, MAX_STEPS),
    "guidance_scale": (0, MAX_GUIDANCE),
}


@dataclass(frozen=True)
class Drawing:
    """
    All that makes the same images again, on the same machine to the pixel.

    Args:
        model (`str`): Name of the model.
        request (`str`): What the images show, see [`parse_composition`](requests_jem.py).
        seed (`int`), num_images (`int`): Of the noise; how many.
        num_inference_steps (`int`): Steps of the chain.
        guidance_scale (`float`): How much more the request counts than the image alone.

    Raises:
        ValueError: a number out of its range, see `RANGES`.
    """

    model: str
    request: str = ""
    seed: int = 0
    num_images: int = 4
    num_inference_steps: int = 16
    guidance_scale: float = 2.0

    def __post_init__(self):
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None or not low <= value <= high:
                raise ValueError(f"{name.replace('_', ' ')} is a number from {low} to {high}, not {value}")

    @classmethod
    def of(cls, model: str, config: JemConfig) -> "Drawing":
        """What the model of a config draws by default, within the limits."""
        return cls(
            model,
            num_inference_steps=min(config.num_inference_steps, MAX_STEPS),
            guidance_scale=min(max(0.0, float(config.guidance_scale)), MAX_GUIDANCE),
        )

    def query(self) -> str:
        """The link that makes these images again, from the `?` on."""
        return "?" + urlencode(asdict(self))

    @classmethod
    def from_query(cls, query: Mapping[str, str], default: "Drawing") -> "Drawing":
        """
        What a link says, the rest as `default` has it.

        Raises:
            ValueError: a link to images of another model, or a value that is no number or out of its range.
        """
        if query.get("model", default.model) != default.model:
            raise ValueError(
                f"the link is to images of {query['model']!r}, and this page draws with {default.model!r}"
            )
        values = asdict(default)
        for field in fields(cls):
            if field.name in query:
                try:
                    values[field.name] = field.type(query[field.name])
                except ValueError:
                    raise ValueError(f"{field.name} in the link is not a number: {query[field.name]!r}") from None
        return cls(**values)

    def arguments(self) -> dict:
        """For the call of a pipeline."""
        return {name: getattr(self, name) for name in RANGES}


def watch(run: Callable, stop: threading.Event, show: Callable) -> Iterator:
    """
    Run `run(callback)` in a thread, and yield `show(x, energies)` of the newest images of its chain.

    The chain ends before its next step once `stop` is set, or this generator is closed.

    Args:
        run: Draws images, its callback being called before each step.
        show: What to make of the images (B, C, H, W) and the mean energies before each step so far.

    Returns:
        What `run` returns, the number of steps done, and the mean energies.
    """
    frames, energies, end = SimpleQueue(), [], object()
    stopped = False

    def callback(x, info):
        nonlocal stopped
        energies.append(info.energy.mean().item())
        frames.put(x)
        stopped = stop.is_set()
        return stopped

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, callback)
        future.add_done_callback(lambda _: frames.put(end))
        try:
            while (x := _newest(frames)) is not end:
                yield show(x, list(energies))
        finally:
            stop.set()  # no more steps for a visitor who has left
        drawn = future.result()
        steps_done = len(energies) - 1 if stopped else len(energies)  # the step that it stopped before has an energy
        return drawn, steps_done, energies


def _newest(queue: SimpleQueue):
    """Wait for an item, and leave out those that newer ones have overtaken."""
    item = queue.get()
    while not queue.empty():
        item = queue.get()
    return item
