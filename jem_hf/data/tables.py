"""A table of labels, as people, pandas and Excel write it, to rows of cells: csv, tsv, jsonl or parquet."""

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

Cell = Any  # a text, a list of texts, or None
Line = tuple[int, dict[str, Cell]]


def is_table(path: Path) -> bool:
    return re.fullmatch(r"metadata\.(csv|tsv|jsonl|parquet)", path.name.lower()) is not None


def read_table(file: Path) -> list[Line]:
    """
    The rows of a table, each with the number of its line (in parquet, of its row).

    A cell is text without spaces around it, a list of texts (jsonl and parquet only), or None where it is missing: an
    empty cell, or null. Words such as "None", "NA" and "nan" are words. csv and tsv are separated by commas,
    semicolons or tabs, whichever the header has most of, and are in UTF-8, UTF-16 or cp1252.

    Raises:
        ValueError: a table that is empty, a column that stands twice, a line that is not as long as the header or is
            no JSON object; with file and line.
    """
    readers = {".jsonl": _json_lines, ".parquet": _parquet_lines}
    lines = list(readers.get(file.suffix.lower(), _separated_lines)(file))
    if not lines:
        raise ValueError(f"{file} has no rows: write the names of the columns into line 1 and one image a line below")
    return lines


def normalised(text: str) -> str:
    """One spelling of characters that have several, and no spaces around them."""
    return unicodedata.normalize("NFC", text).strip()


def decoded(file: Path) -> str:
    """The text of a file, whichever encoding it is in."""
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _separated_lines(file: Path) -> Iterator[Line]:
    stream = io.StringIO(decoded(file), newline="")
    first = stream.readline()
    declared = re.fullmatch(r"sep=(.)\s*", first)  # Excel's own first line
    if not declared:
        stream.seek(0)
    names_alone = re.sub('"[^"]*"', "", first)
    separator = declared[1] if declared else max(",;\t", key=names_alone.count)
    reader = csv.reader(stream, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        header = [normalised(name) for name in next(reader, [])]
        for name in filter(None, header):
            if header.count(name) > 1:
                raise ValueError(f"{file} line 1 has the column {name!r} twice: rename one")
        if "" in header:
            logger.warning(f"{file}: left out column {header.index('') + 1}, which has no name")
        for cells in reader:
            line = reader.line_num + bool(declared)
            if any(cell.strip() for cell in cells):
                if len(cells) != len(header):
                    raise ValueError(f"{file} line {line} has {len(cells)} cells and the header {len(header)}")
                yield line, {name: normalised(cell) or None for name, cell in zip(header, cells) if name}
    except csv.Error as error:
        raise ValueError(f"{file} line {reader.line_num}: {error}") from error


def _json_lines(file: Path) -> Iterator[Line]:
    objects = set()
    for number, line in enumerate(io.StringIO(decoded(file)), start=1):
        if line.strip():
            try:
                row = dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file} line {number} is not a JSON object: {error}") from error
            objects |= {name for name, value in row.items() if isinstance(value, dict)}
            yield number, {normalised(name): _cell(value) for name, value in row.items() if name not in objects}
    if objects:
        logger.warning(f"{file}: left out {', '.join(sorted(objects))}: objects, whose fields are no columns")


def _parquet_lines(file: Path) -> Iterator[Line]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file, partitioning=None).to_pylist()
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is no parquet file ({error}): write it anew") from error
    for number, row in enumerate(rows, start=1):
        yield number, {normalised(name): _cell(value) for name, value in row.items()}


def _cell(value) -> Cell:
    if value is None or value != value:
        return None
    if isinstance(value, list) and all(isinstance(word, str | int | float) for word in value):
        return [normalised(str(word)) for word in value]
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    return normalised(str(value)) or None


def check_images(file: Path, names: dict[int, Cell], present: Container[str], images: Path) -> None:
    """Raise `ValueError` where names in a table, by line, are not among the images present in a folder."""
    missing = [line for line, name in names.items() if name not in present]
    if missing:
        raise ValueError(
            f"{file} line {missing[0]} names {names[missing[0]]!r}, which is not in {images}: {len(missing)} of "
            f"{len(names)} images are missing, so unpack them all or remove their lines"
        )
