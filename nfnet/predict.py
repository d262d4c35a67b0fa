"""Classifies images with weights in any format that this project reads.

    python -m nfnet.predict --weights=PATH --variant=F0 a.jpg b.png
    python -m nfnet.predict --weights=PATH --variant=F0 --inputs=x.npy --logits_out=y.npy

The first command prints the five most probable classes of each image. The second takes images that
are already normalized, float32 [images, height, width, 3], and writes float32 [images, classes].
PATH is a released haiku file, a safetensors file in timm's layout, or a workdir or checkpoint of
this project. Checkpoints know their own variant, activation, numerics, resolution, way of resizing
and class names. For released weights and timm's, images are resized as in the released code: both
sides to 32 pixels more than the crop. For weights that were trained in timm, add --numerics=timm.
"""

import os
import sys
import typing

import numpy as np
from absl import flags
from tqdm import tqdm

from nfnet.activations import ACTIVATIONS, Numerics
from nfnet.command_line import run_main
from nfnet.errors import UserError, escaped
from nfnet.foreign_files.regular_files import open_regular
from nfnet.images.network_input import check_network_input
from nfnet.images.resizing import EvaluationResize
from nfnet.inference import load_classifier, predict, read_images, top_classes
from nfnet.system.paths import define_path, local_path, open_to_write
from nfnet.variants import PIXELS_MAX, get_variant


def read_inputs(path: str) -> np.ndarray:
  """Maps a float32 [n, height, width, 3] array in a .npy file into memory.

  Raises:
    UserError: the file is not such an array.
  """
  try:
    # NumPy maps files by their paths only, and would wait for the writer of a named pipe.
    with open_regular(path):
      inputs = np.load(path, mmap_mode="r", allow_pickle=False)
  # An empty file raises EOFError.
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"inputs {path!r} cannot be read as a .npy array: {error}") from error
  if not isinstance(inputs, np.ndarray):
    raise UserError(f"inputs {path!r} are an archive of arrays; save one array with numpy.save")
  if inputs.dtype != np.float32 or inputs.ndim != 4 or inputs.shape[3] != 3 or 0 in inputs.shape:
    raise UserError(
      f"inputs {path!r} are {inputs.dtype} {list(inputs.shape)}; "
      "must be float32 [images, height, width, 3], normalized, not empty"
    )
  try:
    # The others are looked at when they are read.
    check_network_input(inputs[:1])
  except ValueError as error:
    raise UserError(f"inputs {path!r}: {error}") from error
  return inputs


def _define_flags() -> None:
  define_path("weights", None, "Haiku file, safetensors or checkpoint.", use="read", required=True)
  flags.DEFINE_string("variant", None, "Variant that the weights must have; any if not given.")
  define_path(
    "inputs", None, "Normalized images in a .npy file, instead of image files.", use="read"
  )
  define_path("logits_out", None, "Write the logits to this .npy file.", use="write file")
  flags.DEFINE_integer(
    "pixels", None, "Side that image files are resized to.", lower_bound=1, upper_bound=PIXELS_MAX
  )
  flags.DEFINE_enum(
    "resize",
    None,
    typing.get_args(EvaluationResize),
    "How image files are resized. Default: as the checkpoint was evaluated, or squash.",
  )
  flags.DEFINE_enum(
    "activation", None, ACTIVATIONS, "Default: the checkpoint's, or gelu, as the numerics have it."
  )
  flags.DEFINE_enum(
    "numerics",
    None,
    typing.get_args(Numerics),
    "Default: the checkpoint's, or released. timm is for weights that were trained in timm.",
  )
  flags.DEFINE_integer("batch_size", 16, "Images computed at once.", lower_bound=1)


def main(argv: list[str]) -> None:
  """Predicts for the images that the command line names."""
  arguments = flags.FLAGS
  # A file that is there is read, whatever it is called.
  paths = [path if os.path.exists(path) else local_path("image", path) for path in argv[1:]]
  if bool(paths) == bool(arguments.inputs):
    raise UserError("give either image files or --inputs=FILE.npy")
  for flag in ("pixels", "resize"):
    if arguments.inputs and arguments[flag].value is not None:
      raise UserError(f"--{flag} is for image files; --inputs are used as they are")
  try:
    if arguments.variant is not None:
      get_variant(arguments.variant)
  except ValueError as error:
    raise UserError(f"--variant: {error}") from error
  inputs = read_inputs(arguments.inputs) if arguments.inputs else None
  classifier = load_classifier(
    arguments.weights,
    variant=arguments.variant,
    activation=arguments.activation,
    numerics=arguments.numerics,
    pixels=arguments.pixels,
    resize=arguments.resize,
  )
  if classifier.class_names is None and not arguments.logits_out:
    print(
      f"weights {arguments.weights!r} do not name their classes: they are numbered from 0, in the "
      "order of the classifier",
      file=sys.stderr,
    )
  names = paths if inputs is None else [f"{arguments.inputs}[{i}]" for i in range(len(inputs))]
  images = read_images(paths, classifier) if inputs is None else iter(inputs)
  rows = []
  for name, logits in zip(
    names,
    predict(classifier, images, num_images=len(names), batch_size=arguments.batch_size),
    strict=True,
  ):
    if arguments.logits_out:
      rows.append(logits)
    else:
      tqdm.write(f"{escaped(name)}\n{top_classes(classifier, logits)}")
  if arguments.logits_out:
    logits = np.stack(rows)
    with open_to_write("logits_out", arguments.logits_out) as file:
      np.save(file, logits)


if __name__ == "__main__":
  _define_flags()
  run_main(main)
