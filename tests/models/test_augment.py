"""Views of photos: the first two are exact, the others are drawn, always the same for the same photo and number."""

import pytest
import torch

from binsweep.models.augment import MAX_JITTER, Augment, _draws, augment_images, shift_images

IMAGES = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(6)


@pytest.mark.parametrize("augment", ["flip", "flip_shift", "full"])
def test_view_0_is_the_photo_and_view_1_its_mirror_image(augment: Augment) -> None:
    assert torch.equal(augment_images(IMAGES, ROWS, torch.zeros_like(ROWS), augment), IMAGES)
    assert torch.equal(augment_images(IMAGES, ROWS, torch.ones_like(ROWS), augment), IMAGES.flip(2))


@pytest.mark.parametrize("augment", ["flip_shift", "full"])
def test_a_view_is_the_same_in_any_batch_and_differs_from_others(augment: Augment) -> None:
    whole = augment_images(IMAGES, ROWS, torch.full_like(ROWS, 6), augment)
    some = augment_images(IMAGES[[4, 1]], torch.tensor([4, 1]), torch.tensor([6, 6]), augment)
    assert whole.dtype == torch.uint8 and torch.equal(some, whole[[4, 1]])
    other = augment_images(IMAGES, ROWS, torch.full_like(ROWS, 8), augment)
    assert not torch.equal(whole, other) and not torch.equal(whole, IMAGES)


def test_shifted_images_move_and_repeat_their_edge() -> None:
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4, 1).repeat(2, 1, 1, 3)
    moved = shift_images(image, torch.tensor([[1, 0], [0, -2]]))
    assert moved[0, :, 0, 0].tolist() == [0, 0, 4, 8]
    assert moved[1, 0, :, 0].tolist() == [2, 3, 3, 3]


def test_colours_change_within_their_limits_and_a_flat_photo_stays_flat() -> None:
    flat = torch.full((200, 8, 8, 3), 100, dtype=torch.uint8)
    seen = augment_images(flat, torch.arange(200), torch.full((200,), 3), "full").float()
    assert (seen == seen[:, :1, :1, :1]).all()  # gray and flat: nothing but the brightness can change it
    low, high = 100 * (1 - MAX_JITTER), 100 * (1 + MAX_JITTER)
    assert low - 1 <= seen.min() < low + 5 and high - 5 < seen.max() <= high + 1


def test_draws_are_uniform_and_independent() -> None:
    rows = torch.arange(4000)
    draws = torch.cat([_draws(rows, torch.full_like(rows, view), 6) for view in (2, 3)], 1)
    assert ((draws >= 0) & (draws < 1)).all()
    assert (draws.mean(0) - 0.5).abs().max() < 0.02 and (draws.std(0) - 12**-0.5).abs().max() < 0.01
    assert (torch.corrcoef(draws.T) - torch.eye(12)).abs().max() < 0.07
