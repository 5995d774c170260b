"""An audit as files: a page for people, a table and numbers for machines."""

import base64
import io
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

import torch

from ..data.tensors import AttributeTensors
from ..models.image_processing_jem import JemImageProcessor, to_pixels
from .audit import COLUMNS, ISSUES, RARE, Audit
from .table import schema_of

MAX_SHOWN = 60  # suspects of each kind with their pictures; the table has all
EXPLAINED = {
    "label": "The number is the probability of the given label, given the image and the other labels.",
    "missing": "The number is the probability of the value that is proposed.",
    "near_duplicate": "Two pictures that differ by encoding, a pixel's shift or brightness. In two splits, they leak.",
    "outlier": "The number is the share of the training images that are less strange.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem } table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #e4e7eb } .note { color: #5b626b }
.suspects { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem }
figure { margin: 0; font-size: .8rem } figure img { width: 6rem; image-rendering: auto; border-radius: 4px }
.pair { grid-column: span 2 } del { color: #b3404f } ins { color: #1f7a4d; text-decoration: none }
"""


def write_audit(audit: Audit, splits: dict[str, AttributeTensors], folder: str | Path, title: str) -> None:
    """Write `index.html`, `suspects.parquet` (see `audit.COLUMNS`) and `audit.json` into a folder."""
    import pyarrow
    from pyarrow import parquet

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {name: [each[name] for each in audit.suspects] for name in COLUMNS}
    parquet.write_table(pyarrow.table(rows, schema=schema_of(COLUMNS)), folder / "suspects.parquet")
    numbers = audit.summary() | {"combinations": audit.combinations, "calibration": audit.calibration}
    (folder / "audit.json").write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n")
    (folder / "index.html").write_text(page(audit, splits, title))


def page(audit: Audit, splits: dict[str, AttributeTensors], title: str) -> str:
    """The page, which needs nothing from elsewhere."""
    summary = audit.summary()
    counts = summary["num_issues"]
    rows = [(ISSUES[issue], counts[issue]) for issue in ISSUES]
    rows.insert(3, ("of which across splits", counts["near_duplicate_across_splits"]))
    rows.append((f"Combinations of two values that fewer than {RARE} images have", len(audit.combinations)))
    sizes = ", ".join(f"{number} {split}" for split, number in audit.num_images.items())
    judged = (
        "Every label was judged by a model that had not learnt from it."
        if audit.is_out_of_sample
        else "Labels were judged by the model itself, which finds too few where it learnt from them (try --folds 2)."
    )
    parts = [f"<h1>{escape(title)}</h1><p>{escape(sizes)} images. {judged}</p>", _table(("", "found"), rows)]
    for issue, heading in ISSUES.items():
        found = [each for each in audit.suspects if each["issue"] == issue]
        if found:
            figures = "".join(_figure(each, splits) for each in found[:MAX_SHOWN])
            shown = f" The first {MAX_SHOWN} of {len(found)}." if len(found) > MAX_SHOWN else ""
            note = f'<p class="note">{EXPLAINED[issue]}{shown}</p>'
            parts.append(f'<h2>{heading}</h2>{note}<div class="suspects">{figures}</div>')
    if audit.combinations:
        note = '<p class="note">How many images have both, and how many would if one said nothing of the other.</p>'
        rows = [
            (_terms(each["combination"]), each["count"], each["expected"]) for each in audit.combinations[:MAX_SHOWN]
        ]
        parts.append(f"<h2>Combinations that are rare or absent</h2>{note}{_table(('', 'images', 'expected'), rows)}")
    keys = ("accuracy", "ap", "nll", "ece")
    rows = [(name, *map(row.get, keys)) for name, row in audit.calibration["per_attribute"].items()]
    note = '<p class="note">ECE: how far probabilities are from frequencies, in the mean.</p>'
    parts.append(f"<h2>Prediction and calibration of each attribute</h2>{note}{_table(('', *keys), rows)}")
    head = f'<!doctype html><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"{head}{''.join(parts)}\n"


def _figure(suspect: dict, splits: dict[str, AttributeTensors]) -> str:
    places = [(suspect["split"], suspect["row"])]
    if suspect["other"]:
        split, _, row = suspect["other"].rpartition("/")
        places.append((split, int(row)))
    pictures = "".join(f'<img src="{_url(splits[split].images[row])}" alt="">' for split, row in places)
    names = " and ".join(f"{split}/{row}" for split, row in places)
    text = f'<span title="{escape(suspect["image"])}">{escape(names)}</span>'
    if suspect["attribute"]:
        given = f"<del>{escape(suspect['given_label'])}</del> " if suspect["given_label"] else ""
        text += f"<br>{escape(suspect['attribute'])}: {given}<ins>{escape(suspect['predicted_label'])}</ins>"
    kind = ' class="pair"' if suspect["other"] else ""
    return f"<figure{kind}>{pictures}<figcaption>{text}<br>{suspect['score']:.3g}</figcaption></figure>"


def _url(image: torch.Tensor) -> str:
    buffer = io.BytesIO()
    JemImageProcessor.to_pil(to_pixels(image[None]))[0].save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _terms(combination: dict[str, str]) -> str:
    return " & ".join(f"{name}={value}" for name, value in combination.items())


def _table(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    def cells(values, tag):
        texts = (f"{v:.4f}" if isinstance(v, float) else "-" if v is None else str(v) for v in values)
        return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"

    return f"<table>{cells(header, 'th')}{''.join(cells(row, 'td') for row in rows)}</table>"
