"""Pictures that are the same but for their encoding, a shift by a pixel, or brightness."""

import torch
import torch.nn.functional as F

THUMBNAIL = 16  # pixels a side of what neighbours are looked for among
LEAST_CORRELATION = 0.9  # of thumbnails of one picture
NUM_NEIGHBOURS = 8
LEAST_SIZE = 32  # pixels a side; smaller pictures are enlarged
LEVEL = 1e-3  # of a constant beside the pixels of a thumbnail: pictures of one colour are alike
BLOCK = 8  # blocks a side, in the worst of which two pictures are compared
MAX_ERROR = 9.0  # of 255: what JPEG and a shift leave in the worst block after a little blur


def near_duplicates(images: torch.Tensor, max_error: float = MAX_ERROR) -> list[tuple[int, int, float]]:
    """
    Pairs of near-duplicates.

    Two pictures are such if, shifted by at most a pixel and brought to one brightness and contrast, they are alike in
    every block: a small thing that differs, such as an earring, makes them two. Candidates are neighbours by the
    correlation of thumbnails, which is found for all pairs; at most `NUM_NEIGHBOURS` of each picture are compared.

    Args:
        images (`torch.Tensor`): uint8 (N, C, H, W).
        max_error (`float`, *optional*, defaults to 9): Root mean square, of 255, in the worst of 8x8 blocks.

    Returns:
        Rows i < j of each pair and its error, the smallest first.
    """
    gray = torch.cat([part.float().mean(1, keepdim=True) for part in images.split(1024)])
    if len(gray) and min(gray.shape[-2:]) < LEAST_SIZE:
        gray = F.interpolate(gray, (LEAST_SIZE, LEAST_SIZE), mode="bilinear")
    pairs = sorted({tuple(sorted(pair)) for pair in _neighbours(gray)})
    found = []
    for chunk in torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).split(512):
        errors = _worst_block(gray[chunk[:, 0]], gray[chunk[:, 1]])
        found += [(i, j, e) for (i, j), e in zip(chunk.tolist(), errors.tolist()) if e <= max_error]
    return sorted(found, key=lambda pair: pair[2])


def _neighbours(gray: torch.Tensor) -> list[tuple[int, int]]:
    """Pairs of pictures (N, 1, H, W) whose thumbnails correlate."""
    thumbnails = F.interpolate(gray, (THUMBNAIL, THUMBNAIL), mode="area").flatten(1)
    thumbnails = F.normalize(F.pad(thumbnails - thumbnails.mean(1, keepdim=True), [0, 1], value=LEVEL), dim=1)
    pairs = []
    for start in range(0, len(thumbnails), 1024):
        correlation = thumbnails[start : start + 1024] @ thumbnails.T
        rows = torch.arange(len(correlation))
        correlation[rows, start + rows] = -1.0
        best, others = correlation.topk(min(NUM_NEIGHBOURS, len(thumbnails)), dim=1)
        near = (best >= LEAST_CORRELATION).nonzero()
        pairs += [(start + i, int(others[i, k])) for i, k in near.tolist()]
    return pairs


def _worst_block(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(B,) the error of pictures (B, 1, H, W), by the best of nine shifts."""
    first, second = (F.avg_pool2d(x, 3, stride=1) for x in (first, second))
    inner = first[..., 1:-1, 1:-1]
    height, width = inner.shape[-2:]
    errors = []
    for down in range(3):
        for right in range(3):
            other = second[..., down : down + height, right : right + width]
            residual = _fitted(inner, other) - inner
            blocks = F.adaptive_avg_pool2d(residual.square(), BLOCK).flatten(1)
            errors.append(blocks.amax(1).sqrt())
    return torch.stack(errors).amin(0)


def _fitted(target: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The second pictures in brightness and contrast of the first, by least squares."""
    mean, centred = other.mean((2, 3), keepdim=True), target - target.mean((2, 3), keepdim=True)
    deviation = other - mean
    gain = (deviation * centred).sum((2, 3), keepdim=True) / deviation.square().sum((2, 3), keepdim=True).clamp(min=1)
    return deviation * gain.clamp(0.7, 1.4) + target.mean((2, 3), keepdim=True)
