"""A user's folder of images and tables to a `DatasetDict`."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from transformers.utils import logging

from .attributes import fold
from .splits import SPLIT_NAMES, by_split, log_names, split_name
from .tables import Cell, Line, check_images, is_table, normalised, read_table

logger = logging.get_logger(__name__)

HIDDEN = ("__macosx", "thumbs.db", "desktop.ini")
FILE_COLUMNS = ("filename", "file", "image", "image_id", "path")


class Row(NamedTuple):
    """An image and its labels, with the file and line that say so."""

    image: Path
    split: str
    cells: dict[str, Cell]
    place: str = ""


def read_folder(folder: str | Path):
    """
    Images with their labels as cells of text, of which `attributes.find_columns` makes attributes.

    With tables called `metadata` (see `tables.read_table`), in the folder or below, each row is an image: named in the
    column `file_name`, else in the one whose cells are names of files, relative to the table or absolute. Without
    tables, folders are classes, the values of one attribute "label". Images without a row or a class are left out.

    Splits are what a column `split` says, else folders called as in `splits.SPLIT_NAMES` where no other folder stands
    beside them, else all is "train". No other name means anything: any file that PIL opens is an image, links are
    followed, and what macOS and Windows hide is passed over.

    Returns:
        `DatasetDict` of images by path, in the order of their paths, and columns of strings or lists of strings; None
        for a folder without images and tables.

    Raises:
        ValueError: no labels, a malformed table, a row whose image is not there, or two rows of one image that differ.
    """
    folder = Path(os.path.abspath(folder))
    files = sorted(list_files(folder), key=str)
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images = [path for path in files if path.suffix.lower() in endings]
    tables = [path for path in files if is_table(path)]
    if not images and not tables:
        return None
    root, splits = _split_folders(folder, [*images, *tables])
    rows = _rows_of_tables(images, tables, root, splits) if tables else _rows_of_classes(images, root, splits)
    classes = [] if tables else sorted({row.cells["label"] for row in rows})
    if not tables and len(classes) < 2:
        others = [path.name for path in files if path.suffix.lower() in (".csv", ".tsv", ".jsonl")]
        found = f" (is it {others[0]}?)" if others else ""
        raise ValueError(
            f"{folder} has images and no labels: put a table metadata.csv beside them{found}, with a column file_name "
            f"and one column an attribute, or each image into a folder of its class"
        )
    usable, reason = (images, "no table has a row") if tables else (files, "no image in the folder of a class")
    unused = sorted({*usable} - {row.image for row in rows})
    if unused:
        logger.warning(f"left out {len(unused)} of {len(usable)} files ({reason}), the first {unused[0]}")
    return _dataset_of_rows(rows, classes)


def list_files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files that are not hidden, links followed, those to a folder `above` aside."""
    above |= {os.path.realpath(folder)}
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.lower() in HIDDEN:
            continue
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield from list_files(path, above)


def _split_folders(folder: Path, paths: list[Path]) -> tuple[Path, dict[str, str]]:
    """The folder that holds all paths, and the folders in it that are splits, by name."""
    while True:
        parts = [path.relative_to(folder).parts for path in paths]
        names = {first for first, *rest in parts if rest}
        splits = {name: split for name in names if (split := split_name(name))}
        if len(names) != 1 or splits or any(len(each) == 1 for each in parts):
            break
        folder /= names.pop()
    others = names - splits.keys()
    if others and len(splits) == 1:  # a class called "train", beside "bus"
        return folder, {}
    if others and splits:
        known = ", ".join(sorted(splits))
        raise ValueError(f"{folder}: folder {min(others)!r} stands beside the splits {known}: move it into one")
    log_names(splits)
    return folder, splits


def _rows_of_classes(images: list[Path], root: Path, splits: dict[str, str]) -> list[Row]:
    rows = []
    for path in images:
        *folders, _ = path.relative_to(root).parts
        split = splits[folders.pop(0)] if folders and splits else "train"
        if folders:
            label = folders[0].encode(errors="replace").decode()  # arrow keeps UTF-8 only
            rows.append(Row(path, split, {"label": label}))
    return rows


def _rows_of_tables(images: list[Path], tables: list[Path], root: Path, splits: dict[str, str]) -> list[Row]:
    rows: dict[Path, Row] = {}
    columns, repeated = {}, 0
    for table in tables:
        lines = read_table(table)
        find = _finder(table.parent, images)
        column = _file_column(table, lines, find)
        names = {line: str(cells.pop(column, None) or "") for line, cells in lines}
        found = {name: image for name in names.values() if (image := find(name))}
        check_images(table, names, found, table.parent)
        columns[table] = {name for _, cells in lines for name in cells}
        for line, cells in lines:
            if "image" in cells:
                raise ValueError(f"{table} line 1: 'image' is what the images are called: rename this column")
            image = found[names[line]]
            inside = image if image.is_relative_to(root) else table
            split = splits.get(inside.relative_to(root).parts[0], "train")
            row = Row(image, split, cells, f"{table} line {line}")
            first = rows.setdefault(image, row)
            if _content(first) != _content(row):
                raise ValueError(f"{first.place} and {row.place} contradict each other about {image}: remove one")
            repeated += first is not row
    for table, known in columns.items():
        for name in sorted(set().union(*columns.values()) - known):
            logger.warning(f"{table} has no column {name!r}: these labels are missing")
    if repeated:
        logger.warning(f"{repeated} rows repeat another one and count once")
    return _split_by_column([rows[image] for image in sorted(rows, key=str)])


def _content(row: Row) -> tuple:
    """What two rows that say the same share."""
    cells = {name: fold(cell) for name, cell in row.cells.items() if cell is not None}
    return row.split, cells


def _finder(folder: Path, images: list[Path]) -> Callable[[str], Path | None]:
    """What finds the file that a cell of a table in `folder` names: by its path, or by a name that no other has."""
    below = [path for path in images if path.is_relative_to(folder)]
    count = Counter(path.name for path in below)
    known = {normalised(path.name): path for path in below if count[path.name] == 1}
    known |= {normalised(str(path.relative_to(folder))): path for path in below}

    def find(cell):
        for name in (cell, cell.replace("\\", "/")) if isinstance(cell, str) and cell else ():
            paths = [os.path.normpath(base / name) for base in (folder, folder.parent)]
            path = known.get(os.path.normpath(name)) or next(filter(os.path.isfile, paths), None)
            if path:
                return Path(path)
        return None

    return find


def _file_column(table: Path, lines: list[Line], find: Callable) -> str:
    columns = dict.fromkeys(name for _, cells in lines for name in cells)
    if "file_name" in columns:
        return "file_name"
    hits = {name: sum(find(cells.get(name)) is not None for _, cells in lines[:100]) for name in columns}
    column = max(columns, key=lambda name: (hits[name], name.lower() in FILE_COLUMNS), default="")
    if not hits.get(column):
        known = ", ".join(columns)
        raise ValueError(f"{table} line 1: none of the columns {known} names the images: call it file_name")
    logger.warning(f"{table}: column {column!r} names the images")
    return column


def _split_by_column(rows: list[Row]) -> list[Row]:
    """Rows with the splits that their column "split" says, if they have one and its words are splits."""
    column = next((name for row in rows for name in row.cells if name.lower() == "split"), "")
    words = [str(row.cells.get(column) or "nothing") for row in rows]
    splits = [split_name(word) for word in words]
    if not any(splits):
        return rows
    if None in splits:
        i = splits.index(None)
        known = ", ".join(SPLIT_NAMES)
        raise ValueError(f"{rows[i].place}: {column} {words[i]!r} is none of {known}: write one in each row")
    log_names(words)
    for row in rows:
        row.cells.pop(column)
    return [row._replace(split=SPLIT_NAMES[word.lower()]) for row, word in zip(rows, words)]


def _dataset_of_rows(rows: list[Row], classes: list[str]):
    import datasets

    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row.cells):
        has_lists = any(isinstance(row.cells.get(name), list) for row in rows)
        columns[name] = datasets.List(datasets.Value("string")) if has_lists else datasets.Value("string")
        for row in rows if has_lists else ():
            if isinstance(row.cells.get(name), str):
                row.cells[name] = [row.cells[name]]
    if classes:
        columns = {"label": datasets.ClassLabel(names=classes)}
    splits = {
        split: ([row.image for row in part], {name: [row.cells.get(name) for row in part] for name in columns})
        for split, part in by_split(rows, lambda row: row.split).items()
    }
    return dataset_dict(splits, columns)


def dataset_dict(splits: dict[str, tuple[list[Path], dict[str, list]]], features: dict | None = None):
    """A `DatasetDict` of paths of images and columns of labels by split; columns without a feature are bool."""
    import datasets

    dataset = datasets.DatasetDict()
    for split, (paths, columns) in splits.items():
        kinds = dict.fromkeys(columns, datasets.Value("bool")) | (features or {})
        dataset[split] = datasets.Dataset.from_dict(
            {"image": [_image(path) for path in paths], **columns},
            features=datasets.Features({"image": datasets.Image(), **kinds}),
            split=datasets.NamedSplit(split),
        )
    return dataset


def _image(path: Path) -> dict:
    """Arrow keeps UTF-8 only: an image below a folder whose name is not goes in whole."""
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return {"path": name.encode(errors="replace").decode(), "bytes": path.read_bytes()}
    return {"path": name, "bytes": None}
