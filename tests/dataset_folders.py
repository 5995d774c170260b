"""Datasets on disk as users have them, a few images each, and how to load them."""

import os

import datasets
from PIL import Image

from jem_hf.data.loading import load_attribute_dataset

ZAPPOS_HEADER = "CID,Category,SubCategory,HeelHeight,Insole,Closure,Gender,Material,ToeStyle"


def load(folder, **kwargs):
    """`load_attribute_dataset` with a cache beside the folder."""
    return load_attribute_dataset(folder, cache_dir=str(folder.parent / "cache"), **kwargs)


def write_image(path, level):
    """One grey level tells which image it is."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.new("RGB", (12, 10), (level, level, level)).save(path, quality=100)


def write_celeba(folder, num_images=20, lines=None, partition=None):
    names = [f"{i + 1:06}.jpg" for i in range(num_images)]
    for i, name in enumerate(names):
        write_image(folder / "img_align_celeba" / name, 10 * i)
    values = [" ".join("1" if (i >> k) & 1 else "-1" for k in range(3)) for i in range(num_images)]
    lines = lines or [f"{name}  {row}" for name, row in zip(names, values)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(num_images), "Bald Hat Male ", *lines, ""]))
    if partition is None:
        partition = [f"{name} {0 if i < 12 else 1 if i < 16 else 2}" for i, name in enumerate(names)]
    (folder / "list_eval_partition.txt").write_text("\n".join(partition))
    return folder


def write_zappos(folder, rows=None):
    rows = rows or [
        "100627-72,Shoes,Oxfords,1in - 1 3/4in,,Lace up,Men,Leather;Suede,",
        "100-1,Shoes,Heels,5in & over,Padded,Slip-On,Women,Suede,Round Toe",
        '200-1,Boots,Ankle,,Padded,,Women;Girls,,"Round Toe"',
        "300-9,Boots,Ankle,,,,Women,Leather,",
    ]
    (folder / "ut-zap50k-data").mkdir(parents=True)
    (folder / "ut-zap50k-data" / "meta-data.csv").write_text("\n".join([ZAPPOS_HEADER, *rows, ""]))
    images = folder / "ut-zap50k-images-square"
    write_image(images / "Shoes/Oxfords/Bostonian/100627.72.jpg", 10)
    write_image(images / "Shoes/Heels/L'Autre #1 [50%] Børn::x/100.1.jpg", 20)
    write_image(os.fsencode(images / "Boots/Ankle") + b"/Levi's\xae/200.1.jpg", 30)
    write_image(images / "Boots/Ankle/Trailing./300.9.jpg", 40)
    return folder


def write_image_folder(folder, name="metadata.csv", content=None, num_images=20):
    for i in range(num_images):
        write_image(folder / f"{i}.png", 10 * i)
    folder.joinpath(name).write_text(content or image_table(num_images))
    return folder


def image_table(num_images):
    """Bool, yes and no, -1 and 1, 0 and 1 with gaps, strings, numbers; a constant column, and one without repeats."""
    rows = [
        [
            f"{i}.png",
            "" if i == 0 else i % 2 == 0,
            "" if i == 1 else ("Yes", "no")[i % 2],
            1 if i % 3 else -1,
            "" if i == 2 else i % 2,
            "" if i == 3 else ("red", "blue", "green")[i % 3],
            (9, 10, 38)[i % 3],
            7,
            f"note {i}",
        ]
        for i in range(num_images)
    ]
    header = ["file_name", "Hat", "Happy", "Male", "Bald", "Color", "Size", "Version", "Note"]
    return "\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n"


def write_parquet_folder(folder):
    """Parquet files with three kinds of columns, missing labels, and images of one grey level."""
    rows = {
        "id": list(range(8)),
        "Smiling": [True, True, True, None, False, False, True, False],
        "Hat": [True, False, True, False, False, False, True, False],
        "Never": [False] * 8,
        "color": [0, 1, 2, None, 0, 1, 2, 0],
        "picture": [Image.new("L", (12, 10), 20 * i) for i in range(8)],
    }
    features = {name: datasets.Value("bool") for name in ("Smiling", "Hat", "Never")} | {
        "id": datasets.Value("int64"),
        "color": datasets.ClassLabel(names=["red", "green", "blue"]),
        "picture": datasets.Image(),
    }
    features = datasets.Features({name: features[name] for name in rows})
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder
