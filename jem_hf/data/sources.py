"""Where a dataset is: the avatars, a folder, a parquet file or the Hub."""

import glob
import os
import re
import tempfile
from pathlib import Path

from transformers.utils import logging

from .avatars import load_avatars
from .folders import list_files, read_folder
from .layouts import load_layout
from .splits import by_split, log_names, split_name
from .tables import is_table

logger = logging.get_logger(__name__)


def load_source(
    name_or_path: str | os.PathLike, streaming: bool = False, cache_dir: str | os.PathLike | None = None, **kwargs
):
    """
    A dataset as it is, its splits called train, validation and test whatever word its authors have for them.

    Args:
        name_or_path (`str` or `os.PathLike`):
            A folder: of images (see `folders.read_folder`), of parquet files, as its authors ship CelebA and UT-Zap50K
            or as `save_to_disk` writes it (see `layouts`). A parquet file. "avatars". Else a dataset on the Hub.
        streaming (`bool`, defaults to `False`): Do not download a dataset from the Hub. Local ones stay as they are.
        kwargs: Of `load_layout`, `load_avatars` or `datasets.load_dataset`.

    Returns:
        `DatasetDict`, or `IterableDatasetDict` for a stream from the Hub.

    Raises:
        ValueError: a dataset that is not there or malformed, or a cache that cannot be written.
    """
    path = os.path.expanduser(name_or_path)
    if name_or_path == "avatars":
        if os.path.isdir(path):
            raise ValueError(
                "'avatars' is both the built-in faces and a folder here: './avatars' is the folder; for the faces, "
                "rename the folder or work in another place"
            )
        return load_avatars(cache_dir=cache_folder(cache_dir), **kwargs)
    if os.path.isdir(path):
        dataset = _load_folder(path, cache_dir, kwargs)
    elif os.path.isfile(path):
        if not path.lower().endswith(".parquet"):
            raise ValueError(f"{path!r} is no parquet file: give one, or the folder of the data")
        dataset = _load_parquet({"train": [Path(path)]}, cache_dir, kwargs)
    elif path.startswith((".", "/")) or path.count("/") > 1:
        raise ValueError(f"no folder {path!r}: give 'avatars', a dataset id on the Hub, or a folder that exists")
    else:
        dataset = _load_dataset(path, cache_dir, streaming=streaming, **kwargs)
    names = {split: split_name(split) or str(split) for split in dataset}
    if len(set(names.values())) < len(names):
        return dataset
    log_names(names)
    return type(dataset)({names[split]: rows for split, rows in dataset.items()})


def is_local(name_or_path: str | os.PathLike) -> bool:
    """Whether a dataset is on this machine, where its labels can be counted before its images are streamed."""
    return name_or_path == "avatars" or os.path.exists(os.path.expanduser(name_or_path))


def cache_folder(cache_dir: str | os.PathLike | None = None) -> str:
    """
    Where `datasets` writes: `cache_dir`, else `datasets` in $JEM_HF_CACHE, else its own cache.

    Raises:
        ValueError: nothing can be written there.
    """
    import datasets

    root = os.environ.get("JEM_HF_CACHE")
    folder = Path(cache_dir or (os.path.join(root, "datasets") if root else datasets.config.HF_DATASETS_CACHE))
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"cannot write to the cache {folder} ({error}): name another folder with --cache_dir or JEM_HF_CACHE"
        ) from error
    return str(folder)


def _load_folder(path: str, cache_dir, kwargs: dict):
    dataset = load_layout(path, **kwargs)
    if dataset is not None:
        return dataset
    files = sorted(list_files(Path(path)), key=str)
    parquet = [file for file in files if file.suffix.lower() == ".parquet" and not is_table(file)]
    if parquet and not any(map(is_table, files)):
        return _load_parquet(by_split(parquet, lambda file: _split_of(file.relative_to(path))), cache_dir, kwargs)
    dataset = read_folder(path)
    if dataset is None:
        return _load_dataset(path, cache_dir, **kwargs)
    if kwargs:
        raise ValueError(f"unknown argument {min(kwargs)!r} for {path}: leave it out")
    return dataset


def _split_of(file: Path) -> str:
    """The split of a parquet file: `test.parquet`, `data/test-00000-of-00002.parquet`, `test/0.parquet`."""
    shard = re.fullmatch("(.+)-[0-9]{5}-of-[0-9]{5}", file.stem)
    words = [re.sub("[-_.][0-9]+(-of-[0-9]+)?$", "", file.stem), *file.parts[-2::-1]]
    return next(filter(None, map(split_name, words)), shard[1] if shard else "train")


def _load_parquet(splits: dict[str, list[Path]], cache_dir, kwargs: dict):
    files = {split: [glob.escape(str(path)) for path in paths] for split, paths in splits.items()}
    paths = [path for paths in splits.values() for path in paths]
    dataset = _load_dataset("parquet", cache_dir, os.path.commonpath(paths), data_files=files, **kwargs)
    if list(dataset) != ["train"]:
        return dataset
    parts = [path for path in paths if any(map(split_name, re.split("[-_. ]", path.stem)))]
    if len(parts) > 1:
        logger.warning(
            f"{parts[0].name} and {len(parts) - 1} more are read as one split: for splits call them train.parquet, "
            f"test.parquet and so on, or give them a column 'split'"
        )
    return _divided_by_column(dataset["train"])


def _divided_by_column(rows):
    """The splits that a column "split" says, if there is one and its words are splits, as in a table."""
    import datasets

    column = next((name for name in rows.column_names if name.lower() == "split"), None)
    kind = rows.features.get(column)
    if isinstance(kind, datasets.ClassLabel):
        words = ["" if word is None else kind.int2str(word) for word in rows[column]]
    elif isinstance(kind, datasets.Value) and kind.dtype.endswith("string"):
        words = [word or "" for word in rows[column]]
    else:
        words = []
    splits = [split_name(word) for word in words]
    if not any(splits):
        return datasets.DatasetDict(train=rows)
    if None in splits:
        i = splits.index(None)
        raise ValueError(f"row {i}: {column} {words[i]!r} is no split: write one of train, validation, test in each")
    log_names(words)
    parts = by_split(range(len(rows)), splits.__getitem__)
    return datasets.DatasetDict({split: rows.select(part).remove_columns(column) for split, part in parts.items()})


def _load_dataset(name: str, cache_dir, place: str = "", **kwargs):
    import datasets
    import pyarrow

    cache = cache_folder(cache_dir)
    try:
        return datasets.load_dataset(name, cache_dir=cache, **kwargs)
    except (OSError, datasets.exceptions.DatasetGenerationError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"cannot load the dataset {place or name!r} ({error.__cause__ or error}): give 'avatars', a dataset id on "
            f"the Hub, or a folder of data"
        ) from error
