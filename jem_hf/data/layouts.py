"""Datasets as their authors ship them: from a folder to a `DatasetDict`, found by the files that it holds."""

import inspect
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .folders import dataset_dict
from .splits import by_split
from .tables import check_images, decoded, read_table

CELEBA_SPLITS = {"0": "train", "1": "validation", "2": "test"}


def load_layout(folder: str | Path, **kwargs):
    """
    A `DatasetDict` of a folder in one of the layouts below; None for any other folder.

    Args:
        kwargs: Of the layout; UT-Zap50K has `binarised`.

    Raises:
        ValueError: a malformed line, or a label file whose names are not those of the images.
    """
    for name, load in LAYOUTS.items():
        file = _find(Path(folder), name)
        if file is not None:
            unknown = set(kwargs) - set(inspect.signature(load).parameters)
            if unknown:
                raise ValueError(f"unknown argument {min(unknown)!r} for {folder}: leave it out")
            return load(Path(folder), file, **kwargs)
    return None


def load_celeba(folder: Path, file: Path):
    """
    CelebA: `list_attr_celeba`, `list_eval_partition` and the folder `img_align_celeba`.

    As text, the first file has a line with the number of images, one with the names of the attributes, and for each
    image its file name and -1 or 1 an attribute; the second, for each image, its file name and 0 (train), 1
    (validation) or 2 (test). Kaggle ships both as csv. Where the second is absent all images are in "train".

    Source: Liu, Luo, Wang and Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015.
    """
    attributes, lines = _read_celeba(file, ("-1", "1"))
    labels = {name: [value == "1" for value in values] for _, name, *values in lines}
    images = _find(folder, "img_align_celeba")
    if images is None:
        raise ValueError(f"{folder} has no folder img_align_celeba: unpack img_align_celeba.zip there")
    if (images / images.name).is_dir():
        images /= images.name
    check_images(file, {number: name for number, name, *_ in lines}, set(os.listdir(images)), images)
    split_of = _read_partition(_find(folder, f"list_eval_partition{file.suffix}"), labels)
    splits = {}
    for split, names in by_split(labels, split_of.get).items():
        columns = {attribute: [labels[name][k] for name in names] for k, attribute in enumerate(attributes)}
        splits[split] = ([images / name for name in names], columns)
    return dataset_dict(splits)


def _read_celeba(file: Path, words: Iterable[str]) -> tuple[list[str], list[list]]:
    """The columns of a file of CelebA but the first, and for each image the line, its name and the cells."""
    lines: list[list]
    header = "0"
    if file.suffix == ".csv":
        rows = read_table(file)
        columns, lines = list(rows[0][1])[1:], [[number, *row.values()] for number, row in rows]
    else:
        lines = [[number, *line.split()] for number, line in enumerate(decoded(file).splitlines(), 1) if line.strip()]
        columns = ["partition"]
        if "attr" in file.name:
            if len(lines) < 3 or len(lines[0]) != 2 or not lines[0][1].isdigit():
                raise ValueError(f"{file} line 1 is the number of images and line 2 the attributes: get the file anew")
            (_, header), (_, *columns), *lines = lines
    for number, _, *cells in lines:
        if len(cells) != len(columns) or not set(words).issuperset(cells):
            raise ValueError(f"{file} line {number} is not a file name and {len(columns)} of {', '.join(words)}")
    if int(header) not in (0, len(lines)):
        raise ValueError(f"{file} has {len(lines)} images and not {header}, as line 1 says: get it anew")
    return columns, lines


def _read_partition(file: Path | None, names: Iterable[str]) -> dict[str, str]:
    if file is None:
        return dict.fromkeys(names, "train")
    split_of = {name: CELEBA_SPLITS[cell] for _, name, cell in _read_celeba(file, CELEBA_SPLITS)[1]}
    missing = [name for name in names if name not in split_of]
    if missing:
        raise ValueError(f"{file} lacks {len(missing)} images, the first {missing[0]}: get it anew")
    return split_of


def load_ut_zap50k(folder: Path, file: Path, binarised: bool = True):
    """
    UT-Zap50K: `meta-data.csv` and images `Category/SubCategory/Brand/CID.jpg`, in `ut-zap50k-images-square` if there.

    The image of CID 100627-72 is `100627.72.jpg`. A cell of the table holds none, one or several values, with ";"
    between them; one without any is a label that is missing. Values are spelt as in the authors' `meta-data-bin.csv`,
    with a dot for all but letters and digits.

    Args:
        binarised (`bool`, defaults to `True`):
            One binary attribute `Column.Value` a value; else one attribute a column, its value the first.

    Source: Yu and Grauman, "Fine-Grained Visual Comparisons with Local Learning", CVPR 2014.
    """
    import datasets

    rows = read_table(file)
    root = _find(folder, "ut-zap50k-images-square") or _find(folder, "ut-zap50k-images") or folder
    images = {path.stem.replace(".", "-"): path for path in sorted(root.rglob("*.jpg"))}
    check_images(file, {number: cells["CID"] for number, cells in rows}, images, root)
    columns: dict[str, list] = {}
    features = {}
    for column in (name for name in rows[0][1] if name != "CID"):
        cells = [[_dotted(value) for value in (row[column] or "").split(";") if value.strip()] for _, row in rows]
        names = sorted({value for cell in cells for value in cell})
        if binarised:
            for value in names:
                columns[f"{column}.{value}"] = [value in cell if cell else None for cell in cells]
        else:
            columns[column] = [cell[0] if cell else None for cell in cells]
            features[column] = datasets.ClassLabel(names=[name for name in names if name in columns[column]])
    return dataset_dict({"train": ([images[cells["CID"]] for _, cells in rows], columns)}, features)


def _dotted(value: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", ".", value.strip())


def load_saved(folder: Path, file: Path):
    """What `Dataset.save_to_disk` wrote."""
    import datasets

    dataset = datasets.load_from_disk(str(file.parent))
    return dataset if isinstance(dataset, datasets.DatasetDict) else datasets.DatasetDict(train=dataset)


LAYOUTS = {
    "list_attr_celeba.txt": load_celeba,
    "list_attr_celeba.csv": load_celeba,
    "meta-data.csv": load_ut_zap50k,
    "dataset_dict.json": load_saved,
    "state.json": load_saved,
}


def _find(folder: Path, name: str) -> Path | None:
    """A file or folder by its name, in `folder` or one level below."""
    return next((path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.exists()), None)
