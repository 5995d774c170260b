"""Which requests a model is tried with: rows of labels (N, K), -1 where an attribute is left open."""

from itertools import combinations

import torch

from ..data.tensors import random_rows
from ..models.configuration_jem import JemConfig
from ..models.requests_jem import parse_request


def seen_requests(labels: torch.Tensor, num: int, seed: int = 0) -> torch.Tensor:
    """
    Requests (num, K) for two or three attributes, as they occur together in rows of `labels` (N, K).

    The first of them (of three, the first two) is one that the image has, where it has any: absence is easy to draw.
    """
    generator = torch.Generator().manual_seed(seed)
    requests = torch.full((num, labels.shape[1]), -1)
    labelled = ((labels >= 0).sum(1) >= 2).nonzero()[:, 0]
    for i, row in enumerate(labelled[torch.randint(len(labelled), (num,), generator=generator)].tolist()):
        size = 2 + i % 2
        order = torch.randperm(labels.shape[1], generator=generator)
        order = order[labels[row][order] >= 0]
        present = order[labels[row][order] > 0][: size - 1]
        others = order[~torch.isin(order, present)][: size - len(present)]
        chosen = torch.cat([present, others])
        requests[i, chosen] = labels[row, chosen]
    return requests


def novel_combinations(train: torch.Tensor, novel: torch.Tensor) -> list[tuple[int, ...]]:
    """
    Pairs and triples of attributes found in ten or more rows of `novel` (N, K) and together never in `train`.

    Attributes count as present where their label is above 0. Triples that hold such a pair are not listed again.
    """
    found: list[tuple[int, ...]] = []
    for size in (2, 3):
        for group in combinations(range(train.shape[1]), size):
            is_held_out = (novel[:, group] > 0).all(1).sum() >= 10 and not (train[:, group] > 0).all(1).any()
            if is_held_out and not any(set(pair) < set(group) for pair in found):
                found.append(group)
    return found


def held_out_combinations(config: JemConfig, train: torch.Tensor, novel: torch.Tensor) -> torch.Tensor:
    """The combinations (C, K) kept out of training: those of the config, else what [`novel_combinations`] finds."""
    if config.novel_combinations:
        return torch.tensor([parse_request(combination, config) for combination in config.novel_combinations])
    found = novel_combinations(train, novel)
    rows = torch.full((len(found), train.shape[1]), -1)
    for row, attributes in zip(rows, found):
        row[list(attributes)] = 1
    return rows


def requests_by_kind(
    test: torch.Tensor, novel: torch.Tensor | None, held_out: torch.Tensor, num: int
) -> dict[str, tuple[torch.Tensor, str]]:
    """
    `num` requests of each kind, sparse ones eight times each, and the split whose images set their bounds.

    Args:
        test: labels (N, K), for the kinds "full" (complete label vectors) and "seen" (pairs and triples).
        novel: labels (M, K) of images with combinations kept out of training, for "full_novel"; None without such.
        held_out: those combinations (C, K), for "novel".
    """
    num_sparse = max(1, num // 8)
    requests = {"full": (_complete(test, num), "test")}
    if ((test >= 0).sum(1) >= 2).any():
        requests["seen"] = (seen_requests(test, num_sparse).repeat_interleave(8, 0), "test")
    if novel is not None:
        requests["full_novel"] = (_complete(novel, num), "novel")
    if len(held_out):
        rows = held_out[torch.arange(num_sparse) % len(held_out)]
        requests["novel"] = (rows.repeat_interleave(8, 0), "novel")
    return {kind: (rows, split) for kind, (rows, split) in requests.items() if len(rows)}


def matching_rows(labels: torch.Tensor, requests: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each request up to ten real rows that carry its labels: indices of rows and of requests."""
    rows, which, order = [], [], random_rows(len(labels), len(labels))
    labels = labels[order]
    for i, request in enumerate(requests):
        match = order[((labels == request) | (request < 0)).all(1)][:10]
        rows.append(match)
        which.append(torch.full_like(match, i))
    return torch.cat(rows), torch.cat(which)


def one_row_each(labels: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
    """
    A real row for each request, one that carries its labels, and no row twice: a set of images beside drawn ones.

    Returns:
        Indices (M,) of rows; M is smaller than the number of requests where there are not enough rows.
    """
    order = random_rows(len(labels), len(labels))
    labels, free, rows = labels[order], torch.ones(len(labels), dtype=torch.bool), []
    for request in requests:
        match = (((labels == request) | (request < 0)).all(1) & free).nonzero()[:1, 0]
        free[match] = False
        rows.append(match)
    return order[torch.cat(rows)]


def _complete(labels: torch.Tensor, num: int) -> torch.Tensor:
    complete = labels[(labels >= 0).all(1)]
    return complete[random_rows(len(complete), num)]
