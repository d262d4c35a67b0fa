"""The augmentation of a training image on the host: crop, flip, RandAugment, in this order.

A new augmentation is a function of an image and a generator that `augment` calls. The draws for an
image depend only on the seed of the run, the epoch, the image's index in the data set and how often
the epoch has used it before, and not on workers, hosts, or the batch that the image is in. Mixing
images of a batch (MixUp, CutMix) happens on the devices, in `train.step.mixing`.
"""

import numpy as np

from train.config.experiment import Data
from train.data.crops import random_resized_crop
from train.data.rand_augment import rand_augment


def image_generator(seed: int, epoch: int, index: int, repetition: int = 0) -> np.random.Generator:
  """Returns the source of all random draws for one image in one epoch.

  Args:
    seed: seed of the run, >= 0.
    epoch: number of passes over the data before this one.
    index: index of the record in its split.
    repetition: number of times that the epoch has used the image before.
  """
  return np.random.default_rng((seed, epoch, index, repetition))


def augment(image: np.ndarray, generator: np.random.Generator, data: Data) -> np.ndarray:
  """Augments a decoded training image as the configuration says.

  Args:
    image: uint8 [height, width, 3], of any size.
    generator: source of the draws, from `image_generator`.
    data: section of the configuration that says how to crop, flip and distort.

  Returns:
    uint8 [train_pixels, train_pixels, 3].
  """
  image = random_resized_crop(
    image,
    generator,
    data.train_pixels,
    area_min=data.crop_area_min,
    aspect_ratio_max=data.crop_aspect_ratio_max,
  )
  if data.horizontal_flip:
    image = random_horizontal_flip(image, generator)
  if data.rand_augment_layers:
    image = rand_augment(
      image, generator, layers=data.rand_augment_layers, magnitude=data.rand_augment_magnitude
    )
  return image


def random_horizontal_flip(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
  """Mirrors left and right in half of the draws; uint8 [height, width, 3] in and out."""
  if generator.random() >= 0.5:
    return image
  # Copied channel by channel, because NumPy would copy image[:, ::-1] three bytes at a time when it
  # is put into a batch (259 us instead of 60 us for 224 pixels).
  mirrored = np.empty_like(image)
  for channel in range(image.shape[2]):
    mirrored[:, :, channel] = image[:, ::-1, channel]
  return mirrored
