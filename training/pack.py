"""A dataset as one file for machines without `datasets`: `python training/pack.py RECIPE FILE`.

The file holds images as they are encoded in the dataset, bit for bit, and labels; any image size can be made of it.
"""

import argparse
import io
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from jem_hf import AttributeTensors, JemImageProcessor, load_attribute_dataset
from jem_hf.data.columns import attribute_values, find_image_column, label_tensor
from jem_hf.training.recipes import Recipe, load_recipe
from jem_hf.training.splits import DEFAULT_SPLIT


def pack(dataset: dict, path: str | Path) -> None:
    """Write the splits of the section "dataset" of a recipe to one safetensors file."""
    import datasets

    fields = {name: value for name, value in dataset.items() if name not in ("on_error", "shuffle_buffer")}
    if not (fields.get("split") or fields.get("split_file")):
        fields["split"] = DEFAULT_SPLIT
    splits = load_attribute_dataset(fields.pop("name_or_path", "avatars"), **fields)
    features = next(iter(splits.values())).features
    column, (attributes, values) = find_image_column(features), attribute_values(features)
    tensors = {}
    for name, rows in splits.items():
        rows_of_bytes = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
        encoded = [image["bytes"] or Path(image["path"]).read_bytes() for image in rows_of_bytes[column]]
        tensors[f"{name}.images"] = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
        tensors[f"{name}.sizes"] = torch.tensor([len(image) for image in encoded])
        tensors[f"{name}.labels"] = label_tensor(rows, attributes)
    about = {"splits": list(splits), "attributes": attributes, "values": values, "novel": fields.get("novel")}
    save_file(tensors, path, {"jem_hf": json.dumps(about)})


def unpack(path: str | Path, processor: JemImageProcessor, batch_size: int = 256) -> tuple[dict, dict, list]:
    """
    What was packed: splits and values of the attributes that are not binary, as `load_splits` gives them, and `novel`
    of the recipe that it was packed by.
    """
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["jem_hf"])
        splits = {}
        for name in about["splits"]:
            encoded = file.get_tensor(f"{name}.images").split(file.get_tensor(f"{name}.sizes").tolist())
            batches = [encoded[start : start + batch_size] for start in range(0, len(encoded), batch_size)]
            images = torch.cat([_decode(batch, processor) for batch in batches])
            splits[name] = AttributeTensors(images, file.get_tensor(f"{name}.labels"), about["attributes"])
    return splits, about["values"], about["novel"]


def _decode(encoded: list[torch.Tensor], processor: JemImageProcessor) -> torch.Tensor:
    images = [Image.open(io.BytesIO(image.numpy().tobytes())).convert("RGB") for image in encoded]
    batch = processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")
    return batch["pixel_values"].to(torch.uint8)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that [`recipe_of`] reads."""
    parser.add_argument("recipe", help="a YAML file, or the name of one in training/recipes")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="FIELD=VALUE", help="fields of the recipe"
    )


def recipe_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Recipe:
    """The recipe with the fields that were set; ends with one line where they are wrong."""
    without_value = [item for item in args.set if "=" not in item]
    if without_value:
        parser.error(f"--set takes FIELD=VALUE, not {without_value[0]!r}")
    try:
        return load_recipe(args.recipe, dict(item.split("=", 1) for item in args.set))
    except ValueError as error:
        parser.error(str(error))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add_recipe_arguments(parser)
    parser.add_argument("file", type=Path, help="safetensors file to write")
    args = parser.parse_args()
    recipe = recipe_of(parser, args)
    args.file.parent.mkdir(parents=True, exist_ok=True)
    pack(recipe.dataset, args.file)
    print(f"{args.file}: {args.file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
