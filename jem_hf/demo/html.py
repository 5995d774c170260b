"""What the page shows of images, chains and probabilities, as HTML that needs nothing from elsewhere."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

NUM_ROWS = 6  # probabilities under an image; the others are folded away
UNUSUAL = 0.01  # share of the test images on either side


def readable(name: str) -> str:
    """An attribute or value as people write it."""
    return name.replace("_", " ")


def percent(p: float) -> str:
    """A probability (0 to 1) to a whole per cent, near 0 and 1 to a tenth."""
    return f"{100 * p:.0f}%" if 0.01 <= p <= 0.99 or round(p, 3) in (0, 1) else f"{100 * p:.1f}%"


def png_url(image: Image.Image, settings: dict | None = None) -> str:
    """An image as a PNG in a `data:` URL, `settings` being text inside it (PNG's tEXt and iTXt chunks)."""
    info = PngInfo()
    for name, value in (settings or {}).items():
        info.add_text(name, str(value))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def bars(rows: list[tuple[str, float]], wide: bool = False) -> str:
    """Names and probabilities (0 to 1), each with a bar."""
    items = "".join(
        f'<li><i style="width:{100 * p:.1f}%"></i><span>{escape(name)}</span><span>{percent(p)}</span></li>'
        for name, p in rows
    )
    return f'<ul class="bars{" wide" if wide else ""}">{items}</ul>'


def figure(image: Image.Image, alt: str, caption: str = "") -> str:
    return f'<figure><img src="{png_url(image)}" alt="{escape(alt)}">{caption}</figure>'


def images(figures: list[str]) -> str:
    return f'<div class="images">{"".join(figures)}</div>'


def result(image: Image.Image, settings: dict, file_name: str, asked: list[tuple[str, float]], alt: str) -> str:
    """A drawn image with its energy, the probabilities of what was asked, and its file with `settings` inside."""
    rows = bars(asked[:NUM_ROWS]) if asked else ""
    if asked[NUM_ROWS:]:
        rows += f"<details><summary>{len(asked) - NUM_ROWS} more</summary>{bars(asked[NUM_ROWS:])}</details>"
    line = f"<div><span>Energy {settings['energy']:.2f}</span>{download(image, settings, file_name)}</div>"
    return figure(image, alt, f"<figcaption>{line}{rows}</figcaption>")


def download(image: Image.Image, settings: dict, file_name: str) -> str:
    return f'<a href="{png_url(image, settings)}" download="{escape(file_name)}">Download PNG</a>'


def note(content: str) -> str:
    return f'<p class="note">{content}</p>'


def share_link(query: str) -> str:
    """The link that makes images again, and a button that copies it."""
    copy = "navigator.clipboard.writeText(this.previousElementSibling.href)"
    return note(
        f'<a class="share" href="{escape(query)}">Link to these images</a> '
        f'<button type="button" class="copy" onclick="{copy}">Copy</button>'
    )


def changes(rows: list[tuple[str, float, float]]) -> str:
    """A table of names and their probabilities (0 to 1) before and after an edit."""
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{percent(p)}</td><td>{percent(q)}</td></tr>" for name, p, q in rows
    )
    return f"<table><tr><th>The model sees</th><th>before</th><th>after</th></tr>{cells}</table>"


def energy_curve(energies: list[float], num_steps: int) -> str:
    """Mean energy before each step of a chain."""
    y = np.array(energies)
    low, height = y.min(), np.ptp(y) or 1.0
    points = [f"{100 * i / max(1, num_steps - 1):.2f},{96 - 92 * (e - low) / height:.2f}" for i, e in enumerate(y)]
    text = f"Energy after {len(y)} of {num_steps} steps: from {y[0]:.1f} to {y[-1]:.1f}"
    return _plot(f'<path d="M{" L".join(points)}"/>', text)


def strangeness(score: float) -> str:
    """What an outlier score, the share of training images that are less strange, says of an image."""
    word = "Unusual" if score > 0.99 else "Somewhat unusual" if score > 0.9 else "Nothing unusual"
    return f"<p>{word}: stranger than {100 * score:.3g}% of the training images.</p>"


def energy_among(energy: float, quantiles: list[float]) -> str:
    """
    Where an image's energy is among those of the test images.

    Args:
        quantiles: 101 of them, from the lowest energy to the highest.
    """
    below = share_below(energy, quantiles)
    text = f"Higher than that of {percent(below)} of the test images of this model."
    if below < UNUSUAL:
        text += " So low are the energies of images that are plainer than what it learnt from."
    if is_unusual(energy, quantiles):
        kind, title = "unusual", "<strong>Unusual for this model.</strong>"
    else:
        kind, title = "usual", "Nothing unusual for this model."
    return f'<div class="{kind}">{title} {text}</div>{_density(energy, quantiles)}'


def share_below(energy: float, quantiles: list[float]) -> float:
    """Share (0 to 1) of the distribution with these 101 quantiles below an energy."""
    return float(np.interp(energy, quantiles, np.linspace(0, 1, len(quantiles))))


def is_unusual(energy: float, quantiles: list[float]) -> bool:
    return not UNUSUAL <= share_below(energy, quantiles) <= 1 - UNUSUAL


def _density(energy: float, quantiles: list[float]) -> str:
    """The distribution as a histogram, and a line where the image is."""
    edges = np.linspace(quantiles[0], quantiles[-1], 25)
    mass = np.diff(np.interp(edges, quantiles, np.linspace(0, 1, len(quantiles))))
    low, high = min(edges[0], energy), max(edges[-1], energy)
    x = (edges - low) / (high - low) * 100
    y = 100 - 96 * mass / mass.max()
    outline = " ".join(f"L{a:.2f},{h:.2f} L{b:.2f},{h:.2f}" for a, b, h in zip(x, x[1:], y))
    here = (energy - low) / (high - low) * 100
    area = f'<path class="area" d="M{x[0]:.2f},100 {outline} L{x[-1]:.2f},100 Z"/>'
    line = f'<line x1="{here:.2f}" x2="{here:.2f}" y1="0" y2="100"/>'
    return _plot(area + line, f"{low:.1f}", "energies of test images; the line is this one", f"{high:.1f}")


def _plot(content: str, *captions: str) -> str:
    """SVG in a box of 100 by 100, and the captions side by side below it."""
    below = "".join(f"<span>{caption}</span>" for caption in captions)
    return (
        f'<svg class="curve" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{content}</svg>'
        f'<div class="ends">{below}</div>'
    )
