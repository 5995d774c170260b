"""Any number of images in bounded memory: found by folder, pattern or data set, decoded in worker processes."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ..data.columns import features_of, find_image_column
from ..data.folders import list_files
from ..data.sources import load_source
from ..data.tables import is_table
from ..models.image_processing_jem import JemImageProcessor, open_image, to_rgb

OVERSAMPLING = 2  # how many times larger than what the model sees an image is kept at least


class Batch(NamedTuple):
    """Names of images, pixels (B, C, H, W) in [-1, 1] of those that could be read, and why others could not."""

    names: list[str]
    pixel_values: torch.Tensor
    errors: list[str | None]


class Pictures(Dataset):
    """
    Images that are read when they are asked for.

    Args:
        places (`dict[str, Any]`): By name: a path, or a split of a data set, its column of images and a row of it.
        processor ([`JemImageProcessor`]): Of the model that shall see them.
        files (`dict[str, str]`, *optional*): Of each data set a hash of the names and sizes of its files.
    """

    def __init__(self, places: dict[str, Any], processor: JemImageProcessor, files: dict[str, str] | None = None):
        self.places, self.processor, self.files = places, processor, files or {}
        self.names = list(places)
        size = processor.size
        self.min_size = OVERSAMPLING * max(size.shortest_edge or 0, size.height or 0, size.width or 0)
        if processor.do_trim:  # what it leaves may be a small part
            self.min_size *= OVERSAMPLING
        if processor.crop_to:
            self.min_size = round(self.min_size / processor.crop_to[2])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def data_sets(self) -> dict[str, Any]:
        """What tells data sets apart: rows are known by number, which in other files is that of another image."""
        rows = (name for name, place in self.places.items() if not isinstance(place, Path))
        return {"rows": dict(Counter(name.rpartition("/")[0] for name in rows)), "files": self.files}

    def __getitem__(self, indices: list[int]) -> Batch:
        images, errors = [], []
        for i in indices:
            try:
                images.append(self.read(self.names[i]))
                errors.append(None)
            except ValueError as error:
                errors.append(_utf8(str(error)))
        pixels = self.processor(images, return_tensors="pt")["pixel_values"] if images else torch.empty(0)
        return Batch([self.names[i] for i in indices], pixels, errors)

    def without(self, names: set[str]) -> "Pictures":
        """Those that are not among `names`."""
        places = {name: place for name, place in self.places.items() if name not in names}
        return Pictures(places, self.processor, self.files)

    def batches(self, batch_size: int = 64, num_proc: int | None = None) -> Iterator[Batch]:
        """
        All of them in order, a few batches ahead of who asks.

        Args:
            num_proc (`int`, *optional*): Processes that decode, by default as many as may run at once; 0: this one.
        """
        if num_proc is None:
            num_proc = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        sampler = BatchSampler(range(len(self)), batch_size, drop_last=False)
        num_proc = min(num_proc, len(sampler) - 1)  # one batch needs no process
        yield from DataLoader(self, sampler=sampler, batch_size=None, num_workers=max(0, num_proc))

    def read(self, name: str) -> Image.Image:
        """An image of about the size that is needed, so that a batch of photographs takes little memory."""
        image = to_rgb(open_image(self._source(name), min_size=self.min_size))
        factor = min(image.size) // self.min_size
        return image.reduce(factor) if factor > 1 else image

    def _source(self, name: str) -> Path | bytes:
        place = self.places[name]
        if isinstance(place, Path):
            return place
        rows, column, index = place
        image = rows[index][column]
        if image is None:
            raise ValueError(f"{name} has no image")
        return image["bytes"] or Path(image["path"])


def find_pictures(sources: Iterable[str], processor: JemImageProcessor, output: Path | None = None) -> Pictures:
    """
    The images that `sources` name, in their order: files, folders of images (also below), patterns such as "*.jpg",
    and data sets (a folder of parquet files, "avatars", or an id on the Hub), whose images are called
    source/split/row.

    Args:
        output (`Path`, *optional*): Where a table of them goes, which is none of them.

    Raises:
        ValueError: a source that is none of these, or without an image, or a data set in whose folder the output is.
    """
    places: dict[str, Any] = {}
    files: dict[str, str] = {}
    for source in map(os.path.expanduser, map(str, sources)):
        found = _files(source, output)
        if not found and output is not None and Path(source).resolve() in output.resolve().parents:
            raise ValueError(
                f"the table {str(output)!r} would be part of the data set {source!r}: name a file elsewhere"
            )
        if not found:
            found, files[_utf8(source)] = _rows(source), _hash_of_files(source)
        places |= found
    return Pictures(places, processor, files)


def _files(source: str, output: Path | None) -> dict[str, Path]:
    """The images of a file, a folder or a pattern; empty where it is none of these, but perhaps a data set."""
    if os.path.isfile(source) and not source.endswith(".parquet"):
        return {_utf8(os.path.normpath(source)): Path(source)}
    endings = tuple(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)
    if os.path.isdir(source):
        own = () if output is None else (output.resolve(), output.resolve().with_name(f"{output.name}.parts"))
        files = sorted((file for file in list_files(Path(source)) if not _is_in(file, own)), key=str)
        if any(file.suffix == ".parquet" for file in files) and not any(map(is_table, files)):
            return {}
    else:
        files = [Path(file) for file in sorted(glob.glob(source, recursive=True)) if os.path.isfile(file)]
    found = {_utf8(os.path.normpath(file)): file for file in files if str(file).lower().endswith(endings)}
    if not found and glob.has_magic(source):
        raise ValueError(f"no image file fits the pattern {source!r}")
    return found


def _is_in(file: Path, places: tuple[Path, ...]) -> bool:
    path = file.resolve()
    return any(place == path or place in path.parents for place in places)


def _utf8(text: str) -> str:
    """Tables keep UTF-8 only; what is not is written as \\udce9, by which names that differ stay different."""
    return text.encode(errors="backslashreplace").decode()


def _hash_of_files(source: str) -> str:
    """Of the names and sizes of the files of a data set; of none where it is not in a folder or file here."""
    path, key = Path(source), hashlib.sha256()
    files = sorted(list_files(path), key=str) if path.is_dir() else [path]
    for file in filter(os.path.isfile, files):
        key.update(f"{os.path.relpath(file, path)}\0{file.stat().st_size}\0".encode(errors="surrogateescape"))
    return key.hexdigest()


def _rows(source: str) -> dict[str, tuple]:
    """The rows of a data set, undecoded."""
    import datasets

    if os.path.splitext(source)[1].lower() in Image.registered_extensions():
        raise ValueError(f"there is no image file {source!r}")
    loaded = load_source(source)
    column = find_image_column(features_of(next(iter(loaded.values()))))
    found = {}
    for split, rows in loaded.items():
        undecoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        found |= {f"{_utf8(source)}/{split}/{i}": (undecoded, column, i) for i in range(len(undecoded))}
    return found
