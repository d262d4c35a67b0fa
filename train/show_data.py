"""Shows the images that a network is trained on, as they reach it: cropped, distorted and mixed.

    python -m train.show_data --config=train/configs/demo_pretrain.py --out=sheet.png

The sheet has the first images of the run that the configuration describes, with their classes,
made by the input pipeline and the step's own code for MixUp and CutMix. They come as one batch of
--images, so an image of a larger batch is mixed with another partner. --evaluation shows held-out
images as an evaluation takes them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from nfnet.command_line import run_main
from nfnet.errors import UserError, format_count
from nfnet.system.paths import define_path, open_to_write
from train.config.experiment import Experiment
from train.config.files import load_experiment
from train.config.overrides import parse_arguments
from train.data.batch_workers.batches_ahead import LargeBatchesError
from train.data.batches import evaluation_batches, train_batches
from train.data.dataset import class_names
from train.report.contact_sheet import draw_contact_sheet
from train.report.output import print_and_write
from train.step.example_keys import example_keys
from train.step.mixing import IMAGES_MULTIPLE, mix


def first_batch(experiment: Experiment, images: int, *, evaluation: bool) -> dict[str, np.ndarray]:
  """Returns the first images of a run, mixed if the configuration says so.

  Args:
    experiment: what to train.
    images: number of images in the batch; an evaluation may have fewer.
    evaluation: whether it is the first batch of an evaluation instead.

  Returns:
    The arrays of `train.data.batches`, and those that `train.step.mixing.mix` adds.

  Raises:
    UserError: the data set is missing or damaged, or the number of images does not suit mixing or
      repetitions, or memory.
  """
  try:
    return _first_batch(experiment, images, evaluation=evaluation)
  except LargeBatchesError as error:
    raise UserError(f"--images={images} is too many ({error.needed}); lower --images") from error


def _first_batch(experiment: Experiment, images: int, *, evaluation: bool) -> dict[str, np.ndarray]:
  # Threads give the same images as processes, which take seconds to start.
  data = dataclasses.replace(
    experiment.data, batch_size=images, evaluation_batch_size=images, workers=0
  )
  if evaluation:
    with evaluation_batches(data) as batches:
      batch = next(iter(batches))
    # A split with fewer images is padded, which there is no reason to look at.
    return {name: array[batch["id"] >= 0] for name, array in batch.items()}
  multiple = int(np.lcm(data.repetitions, IMAGES_MULTIPLE if experiment.mixing.is_on else 1))
  if images % multiple:
    raise UserError(
      f"--images={images} does not suit mixing or data.repetitions: take a multiple of {multiple}"
    )
  with train_batches(data, experiment.seed) as batches:
    batch = dict(next(iter(batches)))
  if not experiment.mixing.is_on:
    return batch
  keys = example_keys(experiment.seed, jnp.int32(0), jnp.asarray(batch["position"], jnp.int32))
  arrays = {name: jnp.asarray(batch[name]) for name in ("image", "labels", "weight")}
  return batch | jax.device_get(mix(arrays, keys, experiment.mixing))


def captions(batch: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
  """Returns the classes of each image of a batch, with their shares if the image is mixed.

  Args:
    batch: batch from `first_batch`.
    names: names of the classes.
  """

  def classes(labels: np.ndarray) -> str:
    return ", ".join(names[label] for label in labels if label >= 0)

  texts = []
  for index, weight in enumerate(batch["weight"]):
    text = classes(batch["labels"][index])
    share = batch["partner_share"][index] if "partner_share" in batch else 0
    if not weight:
      text = "cannot be decoded"
    elif share:
      partner = classes(batch["partner_labels"][index])
      text = f"{1 - share:.0%} {text}\n{share:.0%} {partner}"
    texts.append(text)
  return texts


def describe(experiment: Experiment, batch: Mapping[str, np.ndarray], *, evaluation: bool) -> str:
  """Says what was done with the images."""
  data = experiment.data
  count, pixels = batch["image"].shape[:2]
  if evaluation:
    return (
      f"{format_count(count, 'image')} of {data.evaluation_split} at {pixels} px: "
      f"{data.evaluation_resize}, margin of {data.evaluation_resize_margin} px"
    )
  parts = [f"crops of {data.crop_area_min:.0%} to 100% of the area"]
  if data.horizontal_flip:
    parts.append("half of them mirrored")
  if data.rand_augment_layers:
    parts.append(
      f"RandAugment with {format_count(data.rand_augment_layers, 'layer')} of magnitude "
      f"{data.rand_augment_magnitude:g}"
    )
  if experiment.mixing.mixup_alpha is not None:
    parts.append(f"MixUp with alpha {experiment.mixing.mixup_alpha:g}")
  if experiment.mixing.cutmix:
    parts.append("CutMix")
  split = f"{format_count(count, 'image')} of {data.train_split} at {pixels} px"
  return f"{split}, in the order of seed {experiment.seed}: {', '.join(parts)}"


def main(overrides: list[str]) -> None:
  """Writes the sheet and says what is on it."""
  values = flags.FLAGS
  experiment = load_experiment(values.config, overrides[1:])
  batch = first_batch(experiment, values.images, evaluation=values.evaluation)
  sheet = draw_contact_sheet(
    batch["image"], captions(batch, class_names(experiment.data)), values.columns
  )

  def write() -> None:
    with open_to_write("out", values.out) as file:
      sheet.save(file, "PNG")

  text = describe(experiment, batch, evaluation=values.evaluation)
  print_and_write(f"{values.out}: {text}", write)


def _define_flags() -> None:
  define_path("config", None, "Python file that describes the run.", use="read", required=True)
  define_path("out", None, "PNG file to write.", use="write file", suffix=".png", required=True)
  flags.DEFINE_integer("images", 32, "Number of images.", lower_bound=1, upper_bound=4096)
  flags.DEFINE_integer(
    "columns", None, "Images in a row; about a square by default.", lower_bound=1
  )
  flags.DEFINE_bool("evaluation", False, "Show held-out images as an evaluation takes them.")


if __name__ == "__main__":
  _define_flags()
  run_main(main, flags_parser=parse_arguments)
