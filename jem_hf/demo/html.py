"""What the page shows of images, chains and probabilities, as HTML that needs nothing from elsewhere."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

NUM_ROWS = 6  # probabilities under an image; the others are folded away
UNUSUAL = 0.01  # share of the test images on either side

CSS = """
.gradio-container > .main { max-width: 1180px !important; margin: auto !important; }
.gradio-container button.lg { white-space: nowrap; font-size: 1rem; padding: 9px 12px; min-width: 0; }
.switches, .switches > * { background: var(--block-background-fill) !important; gap: 0 !important; }
.switches { padding: 10px 14px !important; border-radius: var(--block-radius); }
.switch, .choice { display: flex !important; align-items: center; justify-content: space-between; gap: 8px;
  border: 0 !important; padding: 3px 2px !important; box-shadow: none !important; overflow: visible !important; }
.switch > span, .choice span[data-testid=block-info] { margin: 0 !important; padding: 0 !important; font-weight: 500;
  color: var(--body-text-color) !important; background: none !important; }
.switch > .wrap { flex-wrap: nowrap !important; gap: 0 !important; flex: none; }
.switch > .wrap label { position: relative; margin-left: -1px; padding: 3px 11px !important; font-size: .85rem;
  border: 1px solid var(--border-color-primary); border-radius: 0 !important; box-shadow: none !important;
  background: none !important; font-weight: 400; }
.switch > .wrap label:first-of-type { border-radius: 7px 0 0 7px !important; }
.switch > .wrap label:last-of-type { border-radius: 0 7px 7px 0 !important; }
.switch > .wrap label.selected { background: var(--button-primary-background-fill) !important;
  color: var(--button-primary-text-color) !important; }
.switch > .wrap label:first-of-type.selected { color: var(--body-text-color) !important;
  background: var(--border-color-primary) !important; }
.switch > .wrap label span { margin: 0 !important; }
.switch > .wrap input { position: absolute !important; opacity: 0; width: 1px !important; height: 1px !important; }
.switch > .wrap label:focus-within { outline: 2px solid var(--color-accent); outline-offset: 1px; z-index: 1; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 14px; margin: 4px 0; }
.images figure, .seen figure { margin: 0; min-width: 0; }
.images img, .seen img { display: block; width: 100%; aspect-ratio: 1; border-radius: 10px; }
.seen { max-width: 220px; }
.images figcaption, .note { font-size: .8rem; color: var(--body-text-color-subdued); margin: 5px 0 0; }
.images figcaption > div { display: flex; justify-content: space-between; gap: 6px; flex-wrap: wrap; }
.images a, .note a { padding: 0 !important; color: var(--link-text-color); text-decoration: underline; }
.bars { list-style: none !important; margin: 4px 0 0 !important; padding: 0 !important; }
.bars li { position: relative; display: flex; justify-content: space-between; gap: 6px; padding: 2px 7px;
  margin: 2px 0; border-radius: 5px; overflow: hidden; background: var(--background-fill-secondary);
  color: var(--body-text-color); }
.bars i { position: absolute; inset: 0 auto 0 0; background: var(--color-accent); opacity: .25; }
.bars span { position: relative; min-width: 0; overflow-wrap: anywhere; }
.bars span:last-child { white-space: nowrap; flex: none; font-variant-numeric: tabular-nums; }
.bars.wide { columns: 2 260px; column-gap: 20px; }
.bars.wide li { break-inside: avoid; padding: 4px 9px; }
.copy { margin-left: 8px; padding: 1px 9px; font-size: .8rem; border: 1px solid var(--border-color-primary);
  border-radius: 6px; background: var(--block-background-fill); color: var(--body-text-color); cursor: pointer; }
.copy:active { background: var(--border-color-primary); }
.curve { width: 100%; height: 84px; display: block; overflow: visible; margin-top: 10px; }
.curve path { fill: none; stroke: var(--color-accent); stroke-width: 2; vector-effect: non-scaling-stroke; }
.curve path.area { fill: var(--color-accent); opacity: .25; stroke: none; }
.curve line { stroke: var(--body-text-color); stroke-width: 2; vector-effect: non-scaling-stroke; }
.ends { display: flex; justify-content: space-between; gap: 8px; font-size: .8rem; margin-top: 4px;
  color: var(--body-text-color-subdued); }
.usual, .unusual { border-left: 4px solid #15803d; padding: 4px 10px; margin: 8px 0; }
.unusual { border-color: #d97706; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 28px; }
.pair h3 { margin: 0 0 6px; font-weight: 600; }
"""


def readable(name: str) -> str:
    """An attribute or value as people write it."""
    return name.replace("_", " ")


def percent(p: float) -> str:
    """A probability (0 to 1) to a whole per cent, near 0 and 1 to a tenth."""
    return f"{100 * p:.0f}%" if 0.01 <= p <= 0.99 or round(p, 3) in (0, 1) else f"{100 * p:.1f}%"


def png(image: Image.Image, settings: dict | None = None) -> bytes:
    """The file of an image, `settings` being text inside it (PNG's tEXt and iTXt chunks)."""
    info = PngInfo()
    for name, value in (settings or {}).items():
        info.add_text(name, str(value))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def bars(rows: list[tuple[str, float]], wide: bool = False) -> str:
    """Names and probabilities (0 to 1), each with a bar."""
    items = "".join(
        f'<li><i style="width:{100 * p:.1f}%"></i><span>{escape(name)}</span><span>{percent(p)}</span></li>'
        for name, p in rows
    )
    return f'<ul class="bars{" wide" if wide else ""}">{items}</ul>'


def figure(image: Image.Image, alt: str, caption: str = "") -> str:
    return f'<figure><img src="{data_url(png(image))}" alt="{escape(alt)}">{caption}</figure>'


def images(figures: list[str]) -> str:
    return f'<div class="images">{"".join(figures)}</div>'


def result(image: Image.Image, settings: dict, file_name: str, asked: list[tuple[str, float]], alt: str) -> str:
    """A drawn image with its energy, the probabilities of what was asked, and its file with `settings` inside."""
    link = f'<a href="{data_url(png(image, settings))}" download="{escape(file_name)}">Download PNG</a>'
    rows = bars(asked[:NUM_ROWS]) if asked else ""
    if asked[NUM_ROWS:]:
        rows += f"<details><summary>{len(asked) - NUM_ROWS} more</summary>{bars(asked[NUM_ROWS:])}</details>"
    caption = f"<figcaption><div><span>Energy {settings['energy']:.2f}</span>{link}</div>{rows}</figcaption>"
    return figure(image, alt, caption)


def energy_curve(energies: list[float], num_steps: int) -> str:
    """Mean energy before each step of a chain."""
    y = np.array(energies)
    low, height = y.min(), np.ptp(y) or 1.0
    points = [f"{100 * i / max(1, num_steps - 1):.2f},{96 - 92 * (e - low) / height:.2f}" for i, e in enumerate(y)]
    text = f"Energy after {len(y)} of {num_steps} steps: from {y[0]:.1f} to {y[-1]:.1f}"
    return (
        f'<svg class="curve" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{text}">'
        f'<path d="M{" L".join(points)}"/></svg><div class="ends"><span>{text}</span></div>'
    )


def energy_among(energy: float, quantiles: list[float]) -> str:
    """
    Where an image's energy is among those of the test images.

    Args:
        quantiles: 101 of them, from the lowest energy to the highest.
    """
    below = share_below(energy, quantiles)
    kind = "unusual" if is_unusual(energy, quantiles) else "usual"
    among = f"Higher than that of {percent(below)} of the test images of this model."
    if below < UNUSUAL:
        among += " So low are the energies of images that are plainer than what it learnt from."
    text = {
        "usual": f"Nothing unusual for this model. {among}",
        "unusual": f"<strong>Unusual for this model.</strong> {among}",
    }
    return f'<div class="{kind}">{text[kind]}</div>{_density(energy, quantiles)}'


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
    return (
        '<svg class="curve" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="area" d="M{x[0]:.2f},100 {outline} L{x[-1]:.2f},100 Z"/>'
        f'<line x1="{here:.2f}" x2="{here:.2f}" y1="0" y2="100"/></svg>'
        f'<div class="ends"><span>{low:.1f}</span><span>energies of test images; the line is this one</span>'
        f"<span>{high:.1f}</span></div>"
    )
