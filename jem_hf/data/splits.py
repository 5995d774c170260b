"""Which rows are trained on, tested on and held out: seeded splits as lists of indices, kept in JSON files."""

import json
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

SPLIT_NAMES = {"train": "train", "training": "train"}
SPLIT_NAMES |= {word: "validation" for word in ("validation", "valid", "val", "dev", "eval", "evaluation")}
SPLIT_NAMES |= {"test": "test", "testing": "test", "novel": "novel"}

_BOTH = "Male No_Beard Bangs Young Smiling Mouth_Slightly_Open".split()
_HAIR = "Black_Hair Brown_Hair Blond_Hair".split()


def split_name(word: str) -> str | None:
    """What a split is called here, "validation" for "dev" for example; None for a word that names no split."""
    return SPLIT_NAMES.get(word.strip().lower())


def log_names(words: Iterable[str]) -> None:
    """Say which splits are called otherwise here."""
    names = {word: split_name(word) or word for word in sorted(words)}
    renamed = ", ".join(f"{word!r} is {name!r}" for word, name in names.items() if name != word)
    if renamed:
        logger.warning(f"splits: {renamed}")


def by_split(rows: Iterable, split_of: Callable) -> dict[str, list]:
    """Rows by their splits: train, validation, test, novel and others, of those that there are."""
    splits: dict[str, list] = {split: [] for split in SPLIT_NAMES.values()}
    for row in rows:
        splits.setdefault(split_of(row), []).append(row)
    return {split: part for split, part in splits.items() if part}


def balanced_split(
    labels: torch.Tensor, fractions: dict[str, float], seed: int = 0, max_frequency: float = 0.02
) -> dict[str, list[int]]:
    """
    Divide rows at random: each named split gets its share, of rare values too, and "train" the rest.

    Args:
        labels (`torch.Tensor`): (N, K), -1 where missing; (N, 0) for a split without regard to labels.
        fractions (`dict[str, float]`): Shares by name of split, such as `{"validation": 0.1, "test": 0.1}`.
        max_frequency (`float`, defaults to 0.02):
            A value of an attribute is rare if fewer than this share of the rows have it. Its rows are divided first,
            rarest before all.

    Returns:
        Ascending indices of rows by name of split, "train" first; the same for the same seed.

    Raises:
        ValueError: shares that are not between 0 and 1, that leave "train" nothing, or a split without a row.

    Source: Kelly, Zemel and Grathwohl 2021 divide the positives of attributes below 2% in proportion.
    """
    num_rows = len(labels)
    sizes = _sizes(num_rows, fractions)
    generator = torch.Generator().manual_seed(seed)
    rare = [labels[:, k] == v for k in range(labels.shape[1]) for v in labels[:, k].unique().tolist() if v >= 0]
    rare = sorted((rows for rows in rare if rows.sum() < max_frequency * num_rows), key=lambda rows: int(rows.sum()))
    free = torch.ones(num_rows, dtype=torch.bool)
    splits: dict[str, list[int]] = {name: [] for name in sizes}

    def deal(rows, shares):
        shuffled = rows[torch.randperm(len(rows), generator=generator)].tolist()
        for name, share in shares.items():
            splits[name] += shuffled[:share]
            shuffled = shuffled[share:]
        splits["train"] += shuffled

    for rows in rare:
        group = (rows & free).nonzero()[:, 0]
        deal(group, {name: round(fraction * len(group)) for name, fraction in fractions.items()})
        free &= ~rows
    deal(free.nonzero()[:, 0], {name: max(0, sizes[name] - len(splits[name])) for name in fractions})
    return {name: sorted(indices) for name, indices in splits.items()}


def _sizes(num_rows, fractions):
    for name, fraction in fractions.items():
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise ValueError(f"the share of split {name!r} is a number between 0 and 1, not {fraction!r}")
        if name in ("train", "novel"):
            raise ValueError(f"split {name!r} has no share: 'train' is the rest, 'novel' what matches a combination")
    sizes = {name: round(fraction * num_rows) for name, fraction in fractions.items()}
    sizes = {"train": num_rows - sum(sizes.values()), **sizes}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"split {name!r} gets none of {num_rows} rows: choose other shares than {fractions}")
    return sizes


def make_split(settings: dict, labels: torch.Tensor) -> dict[str, list[int]]:
    """
    The split that settings describe: `{"kind": "random" or "balanced", "seed": 0, "test": 0.1, ...}`.

    Args:
        settings (`dict`): Kind (random), seed (0), and the share of each split but "train", by name.
        labels (`torch.Tensor`): (N, K), -1 where missing.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"a split is a dict such as {{'kind': 'random', 'test': 0.1}}, not {settings!r}")
    fractions = {split_name(name) or name: value for name, value in settings.items()}
    kind, seed = fractions.pop("kind", "random"), fractions.pop("seed", 0)
    if kind not in ("random", "balanced"):
        raise ValueError(f"unknown kind of split {kind!r}; choose from random, balanced")
    if not fractions:
        raise ValueError("the split names no share: give one for each split but train, such as {'test': 0.1}")
    return balanced_split(labels if kind == "balanced" else labels[:, :0], fractions, seed)


def write_splits(path: str | Path, splits: dict[str, list[int]], num_rows: int, seed: int) -> None:
    """Keep a split: `{"seed": ..., "num_rows": N, "splits": {"train": [...], ...}}` as JSON."""
    Path(path).write_text(json.dumps({"seed": seed, "num_rows": num_rows, "splits": splits}))


def read_splits(path: str | Path, num_rows: int) -> dict[str, list[int]]:
    """Read what [`write_splits`] kept. Raises `ValueError` for a file that does not divide so many rows."""
    try:
        content = json.loads(Path(path).read_text())
        splits = {name: [int(index) for index in indices] for name, indices in content["splits"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no file of splits ({error!r}): write it with write_splits") from error
    if content.get("num_rows", num_rows) != num_rows:
        raise ValueError(f"{path} divides {content['num_rows']} rows and the dataset has {num_rows}: write it anew")
    used = set()
    for name, indices in splits.items():
        for index in indices:
            if not 0 <= index < num_rows or index in used:
                mistake = "is in two places" if index in used else f"is not among {num_rows} rows"
                raise ValueError(f"{path}: row {index} of split {name!r} {mistake}: write it anew")
            used.add(index)
    return splits


def _celeba_candidates() -> list[dict[str, bool]]:
    """Pairs of two attributes, both values each; hair colours only present, never two; none of women and beards."""
    terms = [(name, value) for name in _BOTH for value in (False, True)] + [(name, True) for name in _HAIR]
    return [
        dict(pair)
        for pair in combinations(terms, 2)
        if pair[0][0] != pair[1][0]
        and not (pair[0][0] in _HAIR and pair[1][0] in _HAIR)
        and not (("Male", False) in pair and "No_Beard" in dict(pair))
    ]


ZERO_SHOT_CANDIDATES = {"celeba-zero-shot": _celeba_candidates()}


def zero_shot_combinations(
    labels: torch.Tensor,
    attributes: list[str],
    candidates: list[dict[str, bool]],
    min_frequency: float = 0.005,
    max_frequency: float = 0.05,
) -> list[dict[str, bool]]:
    """
    The combinations to hold out: those candidates that are neither too rare to test on nor common.

    Args:
        labels (`torch.Tensor`): (N, K), -1 where missing, of all the data.
        attributes (`list[str]`): Names of the K columns.
        candidates (`list[dict]`): Combinations.
        min_frequency, max_frequency (`float`): The share of rows that match is at least the one and below the other.

    Source: Kelly, Zemel and Grathwohl 2021; their candidates for CelebA are "celeba-zero-shot" of
    `ZERO_SHOT_CANDIDATES`.
    """
    column = dict(zip(attributes, labels.T))
    chosen = []
    for candidate in candidates:
        match = torch.stack([column[name] == int(value) for name, value in candidate.items()]).all(0)
        if min_frequency <= match.double().mean() < max_frequency:
            chosen.append(candidate)
    return chosen
