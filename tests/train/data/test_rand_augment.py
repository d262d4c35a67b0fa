import pathlib

import numpy as np
import pytest
from PIL import Image

from train.data.rand_augment import OPERATIONS, rand_augment

# Written by golden/make_augmentations.py with torchvision, which shares no code with Pillow.
GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "augmentations.npz")
BY_NAME = {operation.__name__.removeprefix("_"): operation for operation in OPERATIONS}
MAGNITUDES = (3, 15)


class Draws:
  """Stands in for a generator and draws what it is told."""

  def __init__(self, *draws):
    self._draws = list(draws)

  def random(self):
    return self._draws.pop(0)

  def integers(self, end):
    draw = self._draws.pop(0)
    assert 0 <= draw < end
    return draw


def photograph():
  return Image.fromarray(GOLDEN["image"])


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("name", sorted(set(BY_NAME) - {"cutout", "solarize_add"}))
def test_pixels_of_an_independent_implementation(name, magnitude):
  found = np.asarray(BY_NAME[name](photograph(), magnitude / 10, Draws(0.0))).astype(int)
  expected = GOLDEN[f"{name}_{magnitude}"].astype(int)
  difference = np.abs(found - expected)
  if name in ("rotate", "shear_x", "shear_y"):
    # Pixels that fall halfway between two may be either of them.
    assert (difference.max(axis=-1) > 0).mean() < 0.02
  else:
    # Pillow rounds the value that it extrapolates from, which multiplies the error by up to 1.8.
    assert difference.max() <= 3
    assert difference.mean() < 1


def test_the_other_draw_goes_the_other_way():
  for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
    one, other = (
      np.asarray(BY_NAME[name](photograph(), 0.3, Draws(draw))).astype(int) for draw in (0.0, 0.5)
    )
    back = np.asarray(BY_NAME[name](Image.fromarray(one.astype(np.uint8)), 0.3, Draws(0.5))).astype(
      int
    )
    assert (one != other).any()
    # Pixels that did not leave the image come back to where they were.
    stays = (back != 128).any(axis=-1)
    assert stays.mean() > 0.2
    assert (back == GOLDEN["image"])[stays].mean() > 0.6


def test_cutout_greys_a_square_around_its_center():
  found = np.asarray(BY_NAME["cutout"](photograph(), 0.3, Draws(40, 10)))
  expected = GOLDEN["image"].copy()
  expected[: 10 + 12, 40 - 12 : 40 + 12] = 128
  np.testing.assert_array_equal(found, expected)


def test_at_most_half_of_a_side_is_cut_out_or_shifted_away():
  found = np.asarray(BY_NAME["cutout"](photograph(), 3.0, Draws(48, 36)))
  assert (found == 128).all(axis=-1).sum() == 36 * 36
  for name, kept in (("translate_x", (72, 48)), ("translate_y", (36, 96))):
    shifted = np.asarray(BY_NAME[name](photograph(), 3.0, Draws(0.0)))
    np.testing.assert_array_equal(
      shifted[: kept[0], : kept[1]], GOLDEN["image"][72 - kept[0] :, 96 - kept[1] :]
    )
    assert (shifted == 128).all(axis=-1).sum() >= 72 * 96 / 2


def test_solarize_add_lightens_what_is_dark():
  image = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, -1)
  found = np.asarray(BY_NAME["solarize_add"](Image.fromarray(image), 1.5, Draws()))
  expected = np.where(image < 128, np.minimum(255, image.astype(int) + 165), image)
  np.testing.assert_array_equal(found, expected)


def test_strengths_that_a_magnitude_stands_for():
  # Nothing breaks at magnitudes far outside of the usual range.
  for magnitude in (0.0, 30.0):
    for operation in OPERATIONS:
      found = operation(photograph(), magnitude / 10, np.random.default_rng(0))
      assert (found.size, found.mode) == ((96, 72), "RGB")


def test_layers_are_drawn_one_after_the_other_all_with_the_same_probability():
  counts = np.zeros(len(OPERATIONS), int)

  def counted(index):
    def operation(image, strength, generator):
      assert strength == 0.5
      counts[index] += 1
      return image

    return operation

  operations = tuple(map(counted, range(len(OPERATIONS))))
  image = np.zeros((2, 2, 3), np.uint8)
  for seed in range(400):
    generator = np.random.default_rng(seed)
    rand_augment(image, generator, layers=4, magnitude=5, operations=operations)
  assert counts.sum() == 1600
  # Within four standard deviations of a sixteenth.
  assert np.abs(counts - 100).max() < 4 * np.sqrt(1600 / 16 * 15 / 16)


def test_the_result_depends_on_the_draws_alone():
  def augmented(seed):
    return rand_augment(GOLDEN["image"], np.random.default_rng(seed), layers=4, magnitude=15)

  results = [augmented(seed) for seed in range(8)]
  for seed, result in enumerate(results):
    assert result.dtype == np.uint8
    assert result.shape == GOLDEN["image"].shape
    np.testing.assert_array_equal(result, augmented(seed))
  assert len({result.tobytes() for result in results}) == 8
