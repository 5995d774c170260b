import pytest
import torch

from jem_hf import JemTrainingArguments
from jem_hf.training.augmentation import augment, random_placement, random_shift


def test_augmentation_mirrors_and_blurs_about_half():
    x = torch.zeros(400, 1, 8, 8)
    x[:, :, :, 0] = 1
    flipped = augment(x, flip=True, blur=False, generator=torch.Generator().manual_seed(0))
    share = (flipped[:, 0, 0, 7] == 1).float().mean()
    assert 0.4 < share < 0.6 and ((flipped == x) | (flipped == x.flip(-1))).all()
    blurred = augment(x, flip=False, blur=True, generator=torch.Generator().manual_seed(0))
    changed = (blurred != x).flatten(1).any(1).float().mean()
    assert 0.4 < changed < 0.6
    assert torch.equal(augment(x, flip=False, blur=False), x)


def test_random_shift_moves_each_image_and_repeats_edges():
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(500, 3, -1, -1)
    shifted = random_shift(x, 2, torch.Generator().manual_seed(0))
    found = set()
    for image in shifted:
        down, right = divmod(int(image[0, 4, 4]) - 36 + 18, 8)
        down, right = down - 2, right - 2
        rows, columns = (torch.arange(8) + down).clamp(0, 7), (torch.arange(8) + right).clamp(0, 7)
        assert torch.equal(image, x[0][:, rows][:, :, columns])
        found.add((down, right))
    assert len(found) == 25
    assert torch.equal(random_shift(x, 0), x)


def test_an_object_that_is_placed_elsewhere_is_never_cut():
    """A dark square on white: its area tells how much smaller it is, its edges that all of it is there."""
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(300, 1, 64, 64)
    x[:, :, 4:60, 4:60] = -1
    moved = random_placement(x, 1.5, 0.0, generator)
    border = torch.cat([moved[:, 0, (0, -1)].flatten(1), moved[:, 0, :, (0, -1)].flatten(1)], dim=1)
    assert border.min() > 0.999
    area = ((1 - moved) / 2).sum((1, 2, 3)) / 56**2
    assert area.min() > 1.5**-2 - 0.02 and area.max() < 1.02 and area.std() > 0.1
    centre = ((1 - moved[:, 0]).sum(1) * torch.arange(64.0)).sum(1) / (1 - moved[:, 0]).sum((1, 2))
    assert centre.std() > 2


def test_a_placement_of_no_extent_changes_nothing():
    x = torch.rand(3, 3, 16, 16)
    assert torch.allclose(random_placement(x, 1.0, 0.0, torch.Generator()), x, atol=1e-5)


def test_images_are_placed_smaller_never_larger(tmp_path):
    with pytest.raises(ValueError, match="zoom is 1 or more"):
        JemTrainingArguments(str(tmp_path), zoom=0.5, use_cpu=True)
