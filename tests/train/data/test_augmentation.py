import dataclasses

import numpy as np

from train.config.experiment import Data
from train.data.augmentation import augment, image_generator, random_horizontal_flip

WHOLE_IMAGE = Data(
  train_pixels=32, crop_area_min=1.0, crop_aspect_ratio_max=1.0, horizontal_flip=False
)


def test_half_of_the_images_are_mirrored():
  image = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
  flipped = 0
  for index in range(1000):
    found = random_horizontal_flip(image, image_generator(1, 2, index))
    if np.array_equal(found, image[:, ::-1]):
      flipped += 1
    else:
      np.testing.assert_array_equal(found, image)
  # Within four standard deviations of a fair coin.
  assert abs(flipped - 500) <= 64


def test_draws_depend_on_seed_epoch_and_index_and_nothing_else():
  draws = {
    (seed, epoch, index): image_generator(seed, epoch, index).random()
    for seed in range(3)
    for epoch in range(3)
    for index in range(3)
  }
  assert len(set(draws.values())) == len(draws)
  assert image_generator(1, 2, 0).random() == draws[1, 2, 0]


def test_each_augmentation_is_that_of_the_configuration():
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)

  def augmented(**changes):
    data = dataclasses.replace(WHOLE_IMAGE, **changes)
    return [augment(image, image_generator(0, 0, index), data) for index in range(20)]

  plain = augmented()
  assert all(np.array_equal(found, image) for found in plain)
  flipped = [np.array_equal(found, image[:, ::-1]) for found in augmented(horizontal_flip=True)]
  assert 0 < sum(flipped) < 20
  cropped = augmented(crop_area_min=0.1)
  assert sum(np.array_equal(found, image) for found in cropped) < 5
  assert {found.shape for found in augmented(train_pixels=16)} == {(16, 16, 3)}
  distorted = augmented(rand_augment_layers=4)
  assert sum(np.array_equal(found, image) for found in distorted) < 5
