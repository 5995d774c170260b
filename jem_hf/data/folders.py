"""A user's folder of images and tables to a `DatasetDict`."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from transformers.utils import logging

from .columns import text_of
from .splits import SPLIT_NAMES, by_split, log_names, split_name
from .tables import ENDINGS, Cell, check_images, normalised, read_table

logger = logging.get_logger(__name__)

HIDDEN = ("__macosx", "thumbs.db", "desktop.ini")
FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_id", "path")


class Row(NamedTuple):
    """An image and its labels, with the file and line that say so."""

    image: Path
    split: str
    cells: dict[str, Cell]
    place: str


def read_folder(folder: str | Path):
    """
    Images with their labels as cells of text, of which `columns.find_columns` makes attributes.

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
        ValueError: a malformed table, a row whose image is not there, or two rows of one image that differ.
    """
    folder = Path(os.path.abspath(folder))
    files = sorted(list_files(folder), key=str)
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images = [path for path in files if path.suffix.lower() in endings]
    tables = [path for path in files if is_table(path)]
    if not images and not tables:
        return None
    root, splits = _split_folders(folder, [*images, *tables])
    if tables:
        rows = _split_by_column(_rows_of_tables(tables, images, root, splits))
    else:
        rows = _rows_of_classes(images, root, splits)
    unused = sorted({*images} - {row.image for row in rows})
    if unused:
        without = "row in a table" if tables else "folder of a class"
        logger.warning(f"left out {len(unused)} of {len(images)} images without a {without}, the first {unused[0]}")
    return _dataset_of_rows(rows)


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


def is_table(path: Path) -> bool:
    return path.stem.lower() == "metadata" and path.suffix.lower() in ENDINGS


def _split_folders(folder: Path, paths: list[Path]) -> tuple[Path, dict[str, str]]:
    """The folder that holds all paths, and the folders in it that are splits, by name."""
    while True:
        parts = [path.relative_to(folder).parts for path in paths]
        names = {first for first, *rest in parts if rest}
        if len(names) != 1 or split_name(min(names)) or any(len(each) == 1 for each in parts):
            break
        folder /= names.pop()
    splits = {name: split_name(name) for name in names if split_name(name)}
    others = names - splits.keys()
    if others and len(splits) == 1:  # a class called "train", beside "bus"
        return folder, {}
    if others and splits:
        raise ValueError(
            f"{folder}: folder {min(others)!r} stands beside the splits {', '.join(sorted(splits))}: move it into one"
        )
    log_names(splits)
    return folder, splits


def _rows_of_classes(images: list[Path], root: Path, splits: dict[str, str]) -> list[Row]:
    rows = []
    for path in images:
        *folders, _ = path.relative_to(root).parts
        split = splits[folders.pop(0)] if folders and splits else "train"
        if folders:
            label = folders[0].encode(errors="replace").decode()  # arrow keeps UTF-8 only
            rows.append(Row(path, split, {"label": label}, str(path)))
    labels = {row.cells["label"] for row in rows}
    return rows if len(labels) > 1 else [row._replace(cells={}) for row in rows]


def _rows_of_tables(tables: list[Path], images: list[Path], root: Path, splits: dict[str, str]) -> list[Row]:
    rows, repeated = {}, 0
    for table in tables:
        lines = read_table(table)
        find = _finder(table.parent, images)
        column = _file_column(table, lines, find)
        names = {line: cells.pop(column, None) for line, cells in lines}
        found = {name: find(name) for name in set(names.values()) if isinstance(name, str)}
        check_images(table, names, {name for name, image in found.items() if image}, table.parent)
        for line, cells in lines:
            if "image" in cells:
                raise ValueError(f"{table} line 1: 'image' is what the images are called: rename this column")
            image = found[names[line]]
            inside = next((path for path in (image, table) if path.is_relative_to(root)), table)
            split = splits.get(inside.relative_to(root).parts[0], "train")
            row = Row(image, split, cells, f"{table} line {line}")
            first = rows.setdefault(image, row)
            if _content(first) != _content(row):
                raise ValueError(f"{first.place} and {row.place} contradict each other about {image}: remove one")
            repeated += first is not row
    if repeated:
        logger.warning(f"{repeated} rows repeat another one and count once")
    return [rows[image] for image in sorted(rows, key=str)]


def _content(row: Row):
    cells = {name: text_of(cell).casefold() if isinstance(cell, str) else cell for name, cell in row.cells.items()}
    return row.split, {name: cell for name, cell in cells.items() if cell is not None}


def _finder(folder: Path, images: list[Path]) -> Callable[[str], Path | None]:
    """What finds the file that a cell of a table in `folder` names: by its path, or by a name that no other has."""
    below = [path for path in images if path.is_relative_to(folder)]
    count = Counter(path.name for path in below)
    known = {normalised(path.name): path for path in below if count[path.name] == 1}
    known |= {normalised(str(path.relative_to(folder))): path for path in below}

    def find(cell):
        for name in (cell, cell.replace("\\", "/")):
            places = [os.path.normpath(base / name) for base in (folder, folder.parent)]
            file = known.get(os.path.normpath(name)) or next(filter(os.path.isfile, places), None)
            if file:
                return Path(file)
        return None

    return find


def _file_column(table: Path, lines: list[tuple[int, dict[str, Cell]]], find: Callable) -> str:
    columns = dict.fromkeys(name for _, cells in lines for name in cells)
    if "file_name" in columns:
        return "file_name"
    sample = [cells for _, cells in lines[:100]]
    hits = {
        name: sum(isinstance(cells.get(name), str) and find(cells[name]) is not None for cells in sample)
        for name in columns
    }
    column = max(columns, key=lambda name: (hits[name], name.lower() in FILE_COLUMNS), default=None)
    if not hits.get(column):
        raise ValueError(
            f"{table} line 1: none of the columns {', '.join(columns)} names the images: call one file_name"
        )
    logger.warning(f"{table}: column {column!r} names the images")
    return column


def _split_by_column(rows: list[Row]) -> list[Row]:
    """Rows with the splits that their column "split" says, if they have one and its words are splits."""
    column = next((name for row in rows for name in row.cells if name.lower() == "split"), None)
    words = [row.cells.get(column) for row in rows]
    splits = [split_name(word) if isinstance(word, str) else None for word in words]
    if not any(splits):
        return rows
    if not all(splits):
        row, word = next((row, word) for row, word, split in zip(rows, words, splits) if not split)
        raise ValueError(f"{row.place}: {column} {word!r} is none of {', '.join(SPLIT_NAMES)}: write one in each row")
    log_names(words)
    return [
        row._replace(split=split, cells={name: cell for name, cell in row.cells.items() if name != column})
        for row, split in zip(rows, splits)
    ]


def _dataset_of_rows(rows: list[Row]):
    import datasets

    columns = dict.fromkeys(name for row in rows for name in row.cells)
    features = dict.fromkeys(columns, datasets.Value("string"))
    for name in columns:
        lists = [row for row in rows if isinstance(row.cells.get(name), list)]
        texts = [row for row in rows if isinstance(row.cells.get(name), str)]
        if lists and texts:
            raise ValueError(
                f"column {name!r} is a list in {lists[0].place} and none in {texts[0].place}: write one kind"
            )
        if lists:
            features[name] = datasets.List(datasets.Value("string"))
    splits = {
        split: ([row.image for row in part], {name: [row.cells.get(name) for row in part] for name in columns})
        for split, part in by_split(rows, lambda row: row.split).items()
    }
    return dataset_dict(splits, features)


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
