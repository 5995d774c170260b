"""Datasets as their authors ship them: from a folder to a `DatasetDict`, found by the files that it holds."""

import csv
import inspect
import json
import os
import re
from pathlib import Path

CELEBA_SPLITS = {"0": "train", "1": "validation", "2": "test"}


def load_layout(folder: str | Path, **kwargs):
    """
    A `DatasetDict` of a folder in one of the layouts below; None for any other folder, which is left to `datasets`.

    Args:
        kwargs: of the layout; UT-Zap50K has `binarised`.

    Raises:
        ValueError: a malformed line, or a label file whose names are not those of the images.
    """
    folder = Path(folder)
    for name, load in LAYOUTS.items():
        file = _find(folder, name)
        if file is not None:
            unknown = set(kwargs) - set(inspect.signature(load).parameters)
            if unknown:
                raise ValueError(f"unknown argument {min(unknown)!r} for {folder}: leave it out")
            return load(folder, file, **kwargs)
    for name in METADATA:
        for file in (folder / name, *sorted(folder.glob(f"*/{name}"))):
            if file.is_file():
                _check_metadata(file)
    return None


def load_celeba(folder: Path, file: Path):
    """
    CelebA: `list_attr_celeba.txt`, `list_eval_partition.txt` and the folder `img_align_celeba`.

    The first file has a line with the number of images, one with the names of the attributes, and for each image its
    file name and -1 or 1 an attribute; the second, for each image, its file name and 0 (train), 1 (validation) or 2
    (test). Where that file is absent all images are in "train".

    Source: Liu, Luo, Wang and Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015.
    """
    lines = file.read_text().splitlines()
    if len(lines) < 3 or not lines[0].strip().isdigit():
        raise ValueError(f"{file} line 1 is the number of images and line 2 the attributes: get the file anew")
    attributes = lines[1].split()
    labels = {}
    for number, line in _rows(lines[2:], start=3):
        name, *values = line.split()
        if len(values) != len(attributes) or not {"-1", "1"}.issuperset(values):
            raise ValueError(f"{file} line {number} is not a file name and {len(attributes)} times -1 or 1: {line!r}")
        labels[name] = (number, [value == "1" for value in values])
    if len(labels) != int(lines[0]):
        raise ValueError(f"{file} has {len(labels)} images and not {int(lines[0])}, as line 1 says: get it anew")
    images = _find(folder, "img_align_celeba")
    if images is None:
        raise ValueError(f"{folder} has no folder img_align_celeba: unpack img_align_celeba.zip there")
    if (images / images.name).is_dir():
        images = images / images.name
    _check_files(file, {name: number for name, (number, _) in labels.items()}, os.listdir(images), images)
    split_of = _read_partition(_find(folder, "list_eval_partition.txt"), labels)
    rows = {split: [] for split in CELEBA_SPLITS.values()}
    for name in labels:
        rows[split_of[name]].append(name)
    return _dataset_dict(
        {
            split: (
                [images / name for name in names],
                {attribute: [labels[name][1][k] for name in names] for k, attribute in enumerate(attributes)},
            )
            for split, names in rows.items()
            if names
        }
    )


def _read_partition(file, names):
    if file is None:
        return dict.fromkeys(names, "train")
    split_of = {}
    for number, line in _rows(file.read_text().splitlines()):
        cells = line.split()
        if len(cells) != 2 or cells[1] not in CELEBA_SPLITS:
            raise ValueError(f"{file} line {number} is not a file name and 0, 1 or 2: {line!r}")
        split_of[cells[0]] = CELEBA_SPLITS[cells[1]]
    missing = [name for name in names if name not in split_of]
    if missing:
        raise ValueError(f"{file} lacks {len(missing)} of {len(names)} images, the first {missing[0]}: get it anew")
    return split_of


def load_ut_zap50k(folder: Path, file: Path, binarised: bool = True):
    """
    UT-Zap50K: `meta-data.csv` and images `Category/SubCategory/Brand/CID.jpg`, in `ut-zap50k-images-square` if there.

    The image of CID 100627-72 is `100627.72.jpg`. A cell of the table holds none, one or several values, with ";"
    between them; one without any is a label that is missing. Values are spelt as in the authors' `meta-data-bin.csv`,
    with a dot for all but letters and digits.

    Args:
        binarised: one binary attribute `Column.Value` a value; else one attribute a column, its value the first.

    Source: Yu and Grauman, "Fine-Grained Visual Comparisons with Local Learning", CVPR 2014.
    """
    import datasets

    rows = list(read_table(file))
    if not rows:
        raise ValueError(f"{file} has no rows: get it anew")
    root = _find(folder, "ut-zap50k-images-square") or _find(folder, "ut-zap50k-images") or folder
    images = {path.stem.replace(".", "-"): path for path in sorted(root.rglob("*.jpg"))}
    _check_files(file, {cells["CID"]: number for number, cells in rows}, images, root)
    columns, features = {}, {}
    for column in (name for name in rows[0][1] if name != "CID"):
        cells = [[_dotted(value) for value in row[column].split(";") if value.strip()] for _, row in rows]
        if binarised:
            for value in sorted({value for cell in cells for value in cell}):
                columns[f"{column}.{value}"] = [value in cell if cell else None for cell in cells]
        else:
            columns[column] = [cell[0] if cell else None for cell in cells]
            names = sorted({value for value in columns[column] if value is not None})
            features[column] = datasets.ClassLabel(names=names)
    return _dataset_dict({"train": ([images[cells["CID"]] for _, cells in rows], columns)}, features)


def _dotted(value):
    return re.sub(r"[^0-9A-Za-z]", ".", value.strip())


def load_saved(folder: Path, file: Path):
    """What `Dataset.save_to_disk` wrote."""
    import datasets

    dataset = datasets.load_from_disk(str(file.parent))
    return dataset if isinstance(dataset, datasets.DatasetDict) else datasets.DatasetDict(train=dataset)


LAYOUTS = {
    "list_attr_celeba.txt": load_celeba,
    "meta-data.csv": load_ut_zap50k,
    "dataset_dict.json": load_saved,
    "state.json": load_saved,
}
METADATA = ("metadata.csv", "metadata.jsonl")


def read_table(file: Path):
    """
    Line number and cells by column of every row of a CSV file.

    Raises:
        ValueError: a row with more or fewer cells than the header, by its line.
    """
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(f"{file} line {reader.line_num} has {len(cells)} cells and the header {len(header)}")
            yield reader.line_num, dict(zip(header, cells))


def _read_json_lines(file):
    types = {}
    with open(file, encoding="utf-8") as stream:
        for number, line in _rows(stream):
            try:
                row = dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file} line {number} is not a JSON object: {error}") from error
            for column, value in row.items():
                kind, first = types.setdefault(column, (type(value), number)) if value is not None else (None, 0)
                if value is not None and type(value) is not kind and {type(value), kind} != {int, float}:
                    raise ValueError(
                        f"{file}: column {column!r} is {kind.__name__} in line {first} and {type(value).__name__} in "
                        f"line {number}: write one type, and null where a label is missing"
                    )
            yield number, row


def _check_metadata(file):
    """Raise for lines of an image folder's metadata that `datasets` reports without line or misreads."""
    rows = read_table(file) if file.suffix == ".csv" else _read_json_lines(file)
    lines = {row["file_name"]: number for number, row in rows if row.get("file_name")}
    if not any(file.parent.glob("*.zip")):
        present = [name for name in lines if (file.parent / name).is_file()]
        _check_files(file, lines, present, file.parent)


def _check_files(file, lines, present, images):
    """Raise where names in `file`, given with their lines, are not among the images present."""
    present = set(present)
    missing = [name for name in lines if name not in present]
    if missing:
        raise ValueError(
            f"{file} line {lines[missing[0]]} names {missing[0]!r}, which is not in {images}: "
            f"{len(missing)} of {len(lines)} images are missing, so unpack them all or remove their lines"
        )


def _rows(lines, start=1):
    """Lines that are not blank, with their numbers."""
    return ((number, line.rstrip("\n")) for number, line in enumerate(lines, start) if line.strip())


def _find(folder, name):
    """A file or folder by its name, in `folder` or one level below."""
    return next((path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.exists()), None)


def _dataset_dict(splits, features=None):
    """Paths of images and columns of labels by split; columns without a feature are bool."""
    import datasets

    features = features or {}
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": [_image(path) for path in paths], **columns},
                features=datasets.Features(
                    {"image": datasets.Image()}
                    | {name: features.get(name, datasets.Value("bool")) for name in columns}
                ),
                split=datasets.NamedSplit(split),
            )
            for split, (paths, columns) in splits.items()
        }
    )


def _image(path):
    """Arrow keeps UTF-8 only: an image below a folder whose name is not goes in whole."""
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return {"path": name.encode(errors="replace").decode(), "bytes": path.read_bytes()}
    return {"path": name, "bytes": None}
