"""Cartoon faces with chosen attributes, drawn on this machine: 23 binary attributes that can be seen at 32x32 pixels.

The faces are a remix of "Avataaars" (https://avataaars.com) by Pablo Stanley, free for personal and commercial use,
taken from the `dicebear-styles` package, put together by `dicebear-core` and rasterised by `resvg-py`. Eyes, brows and
mouth are drawn larger than in the original, over hair and beard; cheeks and earrings are ours.
"""

import io
import json
import os
from functools import cache
from importlib.resources import files
from itertools import count, islice

import numpy as np
from PIL import Image

CREDIT = "Remix of Avataaars (https://avataaars.com) by Pablo Stanley, free for personal and commercial use."

ATTRIBUTES = (
    "Eyeglasses Sunglasses Beard Moustache Hat Bald Long_Hair Afro Black_Hair Blond_Hair Red_Hair Gray_Hair Smiling "
    "Tongue_Out Eyes_Closed Wide_Eyes Heart_Eyes Dark_Skin Rosy_Cheeks Earrings Blue_Background Green_Background "
    "Red_Clothes"
).split()

NOVEL_COMBINATIONS = [
    dict.fromkeys(names.split(), True)
    for names in (
        "Hat Moustache, Blond_Hair Sunglasses, Afro Wide_Eyes, Bald Heart_Eyes, Red_Hair Eyes_Closed, "
        "Gray_Hair Tongue_Out, Eyeglasses Beard Hat, Black_Hair Rosy_Cheeks Red_Clothes"
    ).split(", ")
]

_REVISION = 1  # part of the cache key: raise it whenever an image or a label of the same index changes
_VIEW_BOX = "36 16 208 208"  # the head and a little clothing, of the style's canvas of 280x280
_TRANSFORMS = {
    "clothes": "translate(40 172)",
    "mouth": "translate(140 159) scale(1.35) translate(-46 -17)",
    "eyes": "translate(140 112) scale(1.3) translate(-42 -14)",
    "eyebrows": "translate(140 84) scale(1.25) translate(-48 -12)",
    "facialHair": "translate(141 146) scale(1.1 1) translate(-60.5 -48)",
}
_LAYERS = ("clothes", "nose", "cheeks", "top", "facialHair", "mouth", "eyes", "eyebrows", "earrings", "accessories")
_HAIR = {
    "Black_Hair": (32, 28, 30),
    "Blond_Hair": (238, 195, 70),
    "Red_Hair": (205, 70, 20),
    "Gray_Hair": (170, 172, 180),
}
_BACKGROUND = {"Blue_Background": (95, 150, 225), "Green_Background": (110, 190, 105), None: (246, 232, 222)}
_TOPS = {
    "Hat": ["winterHat03", "hat"],
    "Bald": ["theCaesar"],
    "Long_Hair": ["straight02", "straightAndStrand"],
    "Afro": ["fro"],
    None: ["theCaesar", "shortFlat", "shortWaved"],
}


def render(index: int, seed: int = 0, size: int = 64) -> tuple[Image.Image, dict[str, bool]]:
    """Draw face `index` of `seed`: an RGB image of `size` x `size` pixels and its labels, the same at every call."""
    import resvg_py
    from dicebear import Avatar

    rng = np.random.default_rng([seed, index])
    labels = _sample_labels(rng)
    svg = Avatar(_style(), _options(labels, rng)).to_string()
    svg = svg.replace('viewBox="0 0 280 280"', f'viewBox="{_VIEW_BOX}"', 1)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB"), labels


def load_avatars(
    num_train: int = 20_000,
    num_test: int = 2000,
    num_novel: int = 2000,
    seed: int = 0,
    size: int = 64,
    num_proc: int | None = None,
    cache_dir: str | None = None,
    **kwargs,
):
    """
    Render the splits train, test and novel; a second call with the same arguments reads them from the cache.

    Split novel holds faces that match one of `NOVEL_COMBINATIONS`, the others none; one of 0 faces is left out. The
    faces of a smaller split are the first of a larger one. `num_proc` defaults to the number of cores,
    further keywords go to `Dataset.from_generator`.

    Returns:
        `DatasetDict` with the column "image" (`size` x `size` pixels) and one bool column an attribute.
    """
    import datasets

    features = {"image": datasets.Image()} | {name: datasets.Value("bool") for name in ATTRIBUTES}
    splits = datasets.DatasetDict()
    for split, num_images in (("train", num_train), ("test", num_test), ("novel", num_novel)):
        if num_images == 0:
            continue
        splits[split] = datasets.Dataset.from_generator(
            _generate_examples,
            features=datasets.Features(features),
            gen_kwargs=dict(indices=_split_indices(split, num_images, seed), seed=seed, size=size, revision=_REVISION),
            num_proc=min(num_proc or os.cpu_count() or 1, num_images),
            cache_dir=cache_dir,
            split=datasets.NamedSplit(split),
            **kwargs,
        )
        splits[split].info.description = CREDIT
        splits[split].info.homepage = "https://avataaars.com"
        splits[split].info.license = "Free for personal and commercial use"
    return splits


def _generate_examples(indices, seed, size, revision):
    for index in indices:
        image, labels = render(index, seed, size)
        yield {"image": image, **labels}


def _split_indices(split, num_images, seed):
    """The first `num_images` indices of a split: of the faces that match no novel combination, every tenth is test."""

    def belongs(index):
        labels = _sample_labels(np.random.default_rng([seed, index]))
        if any(combination.items() <= labels.items() for combination in NOVEL_COMBINATIONS):
            return split == "novel"
        return split == ("test" if index % 10 == 9 else "train")

    return list(islice(filter(belongs, count()), num_images))


def _sample_labels(rng):
    """Draw one label vector: groups that exclude each other are one draw, all else is independent."""
    present = set()

    def draw(*names, p):
        """Take one name with its probability, or none with what is left."""
        u = rng.random()
        present.update(name for name, low, high in zip(names, np.cumsum([0, *p]), np.cumsum(p)) if low <= u < high)

    draw("Hat", "Bald", "Long_Hair", "Afro", p=[0.18, 0.16, 0.24, 0.18])
    if not present & {"Hat", "Bald"}:
        draw(*_HAIR, p=[0.25] * 4)
    draw("Eyeglasses", "Sunglasses", p=[0.3, 0.18])
    if "Sunglasses" not in present:
        draw("Eyes_Closed", "Wide_Eyes", "Heart_Eyes", p=[0.2, 0.22, 0.2])
    draw("Beard", "Moustache", p=[0.3, 0.2])
    draw("Smiling", p=[0.5])
    if "Smiling" in present:
        draw("Tongue_Out", p=[0.38])
    draw("Blue_Background", "Green_Background", p=[0.35, 0.3])
    for name, p in (("Dark_Skin", 0.4), ("Rosy_Cheeks", 0.3), ("Earrings", 0.3), ("Red_Clothes", 0.35)):
        draw(name, p=[p])
    return {name: name in present for name in ATTRIBUTES}


def _options(labels, rng):
    """Dicebear options for a label vector; what the labels leave open is drawn from `rng`."""

    def first(names, default=None):
        return next((name for name in names if labels[name]), default)

    def shade(color, jitter=12):
        """A color near `color`: lighter or darker as a whole, and a little of another hue."""
        rgb = np.add(color, rng.uniform(-jitter, jitter) + rng.uniform(-jitter / 2, jitter / 2, 3))
        return "#" + bytes(rgb.clip(0, 255).astype(np.uint8)).hex()

    hair = shade(_HAIR[first(_HAIR) or rng.choice(list(_HAIR))])
    mouth = "tongue" if labels["Tongue_Out"] else "smile" if labels["Smiling"] else rng.choice(["serious", "sad"])
    eyes = {"Eyes_Closed": "closed", "Wide_Eyes": "surprised", "Heart_Eyes": "hearts", None: "default"}
    return {
        "topVariant": str(rng.choice(_TOPS[first(("Hat", "Bald", "Long_Hair", "Afro"))])),
        "topProbability": 0 if labels["Bald"] else 100,
        "eyesVariant": eyes[first(("Eyes_Closed", "Wide_Eyes", "Heart_Eyes"))],
        "eyebrowsVariant": "default",
        "mouthVariant": str(mouth),
        "facialHairVariant": "beardMajestic" if labels["Beard"] else "moustacheMagnum",
        "facialHairProbability": 100 * (labels["Beard"] or labels["Moustache"]),
        "accessoriesVariant": "kurt" if labels["Sunglasses"] else "prescription02",
        "accessoriesProbability": 100 * (labels["Sunglasses"] or labels["Eyeglasses"]),
        "cheeksProbability": 100 * labels["Rosy_Cheeks"],
        "earringsProbability": 100 * labels["Earrings"],
        "clothesVariant": "shirtCrewNeck",
        "hairColor": hair,
        "facialHairColor": hair,
        "accessoriesColor": "#202428",
        "skinColor": shade((138, 88, 56) if labels["Dark_Skin"] else (246, 205, 168), 10),
        "hatColor": shade(((225, 110, 170), (90, 70, 160))[rng.integers(2)]),
        "clothesColor": shade((215, 40, 50) if labels["Red_Clothes"] else (60, 75, 100)),
        "backgroundColor": shade(_BACKGROUND[first(("Blue_Background", "Green_Background"))], 20),
        "scale": rng.uniform(0.95, 1.05),
        "rotate": rng.uniform(-5, 5),
        "translateX": rng.uniform(-3, 3),
        "translateY": rng.uniform(-3, 3),
    }


@cache
def _style():
    """The avataaars style with larger features in another order, and cheeks and earrings added."""
    from dicebear import Style

    definition = json.loads(files("dicebear_styles").joinpath("avataaars.json").read_text("utf-8"))
    definition["components"] |= {
        "cheeks": _pair_of_discs(y=140, distance=37, radius=14, fill="#f0506e"),
        "earrings": _pair_of_discs(y=142, distance=64, radius=10, fill="#ffd21f"),
    }
    elements = definition["canvas"]["elements"]
    components = {element["name"]: element for element in elements if element["type"] == "component"}
    components |= {name: {"type": "component", "name": name} for name in ("cheeks", "earrings")}
    for name, transform in _TRANSFORMS.items():
        components[name]["attributes"] = {"transform": transform}
    skin_and_shadow = [element for element in elements if element["type"] == "element"]
    definition["canvas"]["elements"] = skin_and_shadow + [components[name] for name in _LAYERS]
    return Style(definition)


def _pair_of_discs(y, distance, radius, fill):
    attributes = {"cy": str(y), "r": str(radius), "fill": fill}
    circles = [{"cx": str(x), **attributes} for x in (140 - distance, 140 + distance)]
    discs = [{"type": "element", "name": "circle", "attributes": circle} for circle in circles]
    return {"width": 280, "height": 280, "variants": {"default": {"elements": discs}}}
