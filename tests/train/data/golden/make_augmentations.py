"""Applies RandAugment's operations to a photograph with torchvision, independently of Pillow.

    python tests/train/data/golden/make_augmentations.py IMAGE.npy augmentations.npz

in an environment with torchvision; it wrote the stored file with version 0.29.1. IMAGE.npy is
uint8 [72, 96, 3]: rows 180 to 251 and columns 300 to 395 of scikit-learn's china.jpg.
"""

import math
import sys

import numpy as np
import torch
import torchvision.transforms.v2.functional as F  # noqa: N812

MAGNITUDES = (3, 15)


def operations(image, magnitude):
  """Returns the images by the name of the function in train.data.rand_augment, for draws of 0."""
  strength = magnitude / 10
  enhancement = strength * 1.8 + 0.1

  def move(**changes):
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return F.affine(image, **{**still, **changes}, fill=[128.0] * 3)

  shear_degrees = math.degrees(math.atan(0.3 * strength))
  height, width = image.shape[-2:]
  return {
    "autocontrast": F.autocontrast(image),
    "equalize": F.equalize(image),
    "invert": F.invert(image),
    "rotate": F.rotate(image, 30.0 * strength, fill=[128.0] * 3),
    "posterize": F.posterize(image, int(4 * strength)),
    # Beyond white there is nothing, which torchvision refuses.
    "solarize": F.solarize(image, int(256 * strength)) if strength < 1 else image,
    "color": F.adjust_saturation(image, enhancement),
    "contrast": F.adjust_contrast(image, enhancement),
    "brightness": F.adjust_brightness(image, enhancement),
    "sharpness": F.adjust_sharpness(image, enhancement),
    "shear_x": move(shear=[shear_degrees, 0.0], center=[0, 0]),
    "shear_y": move(shear=[0.0, shear_degrees], center=[0, 0]),
    "translate_x": move(translate=[-min(round(100 * strength), width // 2), 0]),
    "translate_y": move(translate=[0, -min(round(100 * strength), height // 2)]),
  }


def main(image_path, out_path):
  """Writes the image and its distorted versions."""
  image = np.load(image_path)
  tensor = torch.from_numpy(image).permute(2, 0, 1)
  arrays = {"image": image}
  for magnitude in MAGNITUDES:
    for name, result in operations(tensor, magnitude).items():
      assert result.dtype == torch.uint8
      arrays[f"{name}_{magnitude}"] = result.permute(1, 2, 0).numpy()
  np.savez_compressed(out_path, **arrays)


if __name__ == "__main__":
  main(*sys.argv[1:])
