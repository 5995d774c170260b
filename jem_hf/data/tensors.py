"""Images and labels as tensors for training: all in memory, or a stream."""

from itertools import islice

import torch
from transformers.utils import logging

from ..models.image_processing_jem import JemImageProcessor, to_rgb
from .columns import attribute_values, check_names, features_of, find_image_column, label_tensor

logger = logging.get_logger(__name__)


class AttributeTensors(torch.utils.data.Dataset):
    """
    Images and labels in memory.

    Args:
        images (`torch.Tensor`): (N, C, H, W), uint8.
        labels (`torch.Tensor`): (N, K), int64, -1 where missing.
        attributes (`list[str]`): The K names.
        places (`list[str]`, *optional*): Where the N images are from: the path of a file, or a row.
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, attributes: list[str], places: list[str] | None = None
    ):
        is_tensor = isinstance(images, torch.Tensor) and isinstance(labels, torch.Tensor)
        if not (is_tensor and isinstance(attributes, list)):
            raise ValueError("images and labels must be tensors and attributes a list of names")
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 (N, C, H, W), not {images.dtype} {tuple(images.shape)}")
        shape = (len(images), len(attributes))
        if labels.shape != shape or labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 {shape}, not {labels.dtype} {tuple(labels.shape)}")
        if places is not None and len(places) != len(images):
            raise ValueError(f"{len(places)} places of {len(images)} images")
        self.images, self.labels, self.attributes, self.places = images, labels, list(attributes), places

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}

    def __getitems__(self, indices):
        pixel_values, labels = self.images[indices], self.labels[indices]
        return [{"pixel_values": x, "labels": y} for x, y in zip(pixel_values, labels)]

    def subset(self, indices) -> "AttributeTensors":
        """The rows of a list, slice, index tensor or boolean mask."""
        places = self.places and [self.places[i] for i in torch.arange(len(self))[indices].tolist()]
        return AttributeTensors(self.images[indices], self.labels[indices], self.attributes, places)

    def sample(self, num: int) -> "AttributeTensors":
        """At most `num` rows, see [`random_rows`]."""
        return self.subset(random_rows(len(self), num))


def random_rows(total: int, num: int) -> torch.Tensor:
    """At most `num` of so many rows, at random, the same each time: the first of a data set are often of one kind."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:num]


class AttributeStream(torch.utils.data.IterableDataset):
    """
    A stream as rows for training: `pixel_values` uint8 (C, H, W) and `labels` int64 (K,), -1 where missing.

    Every pass over it is shuffled anew, by a seed of its own; `set_epoch` is called by the trainer.

    Args:
        dataset (`datasets.IterableDataset`): A split of `load_attribute_dataset(..., streaming=True)`.
        image_processor, attributes, on_error: As for [`encode_dataset`].
        shuffle_buffer (`int`, defaults to 1000): Rows from which the next is drawn; 0: in order.
    """

    def __init__(
        self,
        dataset,
        image_processor: JemImageProcessor,
        attributes: list[str],
        shuffle_buffer: int = 1000,
        seed: int = 0,
        on_error: str = "raise",
    ):
        self.dataset, self.image_column = _checked(dataset, attributes, on_error)
        if shuffle_buffer:
            self.dataset = self.dataset.shuffle(seed=seed, buffer_size=shuffle_buffer)
        self.image_processor, self.attributes, self.on_error = image_processor, list(attributes), on_error
        self._first = 0

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def start_at(self, number: int) -> None:
        """The next pass begins with so many rows left out; none of them is decoded unless some may be broken."""
        self._first = number

    def __iter__(self):
        first, self._first = self._first, 0
        if self.on_error == "skip":  # only decoding tells which rows count
            yield from islice(self._rows(0), first, None)
        else:
            yield from self._rows(first)

    def _rows(self, first):
        broken = []
        for number, row in enumerate(islice(self.dataset, first, None), first):
            image = _decode(row[self.image_column], number, self.on_error, broken)
            if image is not None:
                labels = torch.tensor([-1 if row[name] is None else int(row[name]) for name in self.attributes])
                yield {"pixel_values": _pixel_values([image], self.image_processor)[0], "labels": labels}
        _warn(broken, number + 1 if broken else 0)

    def to_tensors(self) -> AttributeTensors:
        """All rows in memory, as `AttributeTensors`. Raises ValueError for an empty stream."""
        rows = list(self)
        if not rows:
            raise ValueError("the stream is empty: load another split")
        images, labels = (torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels"))
        return AttributeTensors(images, labels, self.attributes)


def encode_dataset(
    dataset, image_processor: JemImageProcessor, attributes: list[str], batch_size: int = 256, on_error: str = "raise"
) -> AttributeTensors:
    """
    Decode, resize and crop the images of one split to uint8 RGB; False and True become 0 and 1, None -1.

    Args:
        dataset (`datasets.Dataset`): A split of `load_attribute_dataset`.
        on_error (`str`, defaults to `"raise"`):
            `"raise"` a `ValueError` that names row and file of an image that cannot be read, or `"skip"`: leave such
            rows out and warn once, with their number.
    """
    dataset, image_column = _checked(dataset, attributes, on_error)
    labels, encoded_images = label_tensor(dataset, attributes), dataset.select_columns(image_column)
    broken: list[tuple[int, str]] = []
    pixel_values, places = [], []
    for start in range(0, len(dataset), batch_size):
        rows = list(enumerate(encoded_images[start : start + batch_size][image_column], start))
        decoded = [_decode(image, row, on_error, broken) for row, image in rows]
        names = [(image and image.get("path")) or f"row {row}" for row, image in rows]
        places += [name for name, image in zip(names, decoded) if image is not None]
        if images := [image for image in decoded if image is not None]:
            pixel_values.append(_pixel_values(images, image_processor))
    if not pixel_values:
        raise ValueError(f"none of the {len(dataset)} images can be read: is {image_column!r} the column of images?")
    _warn(broken, len(dataset))
    kept = torch.ones(len(dataset), dtype=torch.bool)
    kept[[row for row, _ in broken]] = False
    return AttributeTensors(torch.cat(pixel_values), labels[kept], attributes, places)


def _checked(dataset, attributes, on_error):
    """The dataset with its images as files, not decoded, and their column."""
    import datasets

    if on_error not in ("raise", "skip"):
        raise ValueError(f"unknown on_error {on_error!r}; choose from raise, skip")
    features = features_of(dataset)
    image_column = find_image_column(features)
    check_names(attributes, attribute_values(features)[0])
    return dataset.cast_column(image_column, datasets.Image(decode=False)), image_column


def _decode(image, row, on_error, broken):
    """The image in RGB. One that cannot be read raises, or is noted in `broken` and None."""
    import datasets

    try:
        return to_rgb(datasets.Image().decode_example(image))
    except Exception as error:  # of many kinds: PIL's, those of its decoders, and None's
        file = f" ({image['path']})" if image and image.get("path") else ""
        if on_error == "raise":
            raise ValueError(
                f"the image in row {row}{file} cannot be read ({error}): remove the row, or leave such rows out with "
                f"on_error='skip'"
            ) from error
        broken.append((row, file))


def _pixel_values(images, image_processor):
    batch = image_processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")
    return batch["pixel_values"].to(torch.uint8)


def _warn(broken, num_rows):
    if broken:
        row, file = broken[0]
        logger.warning(
            f"left out {len(broken)} of {num_rows} images that cannot be read, the first in row {row}{file}"
        )
