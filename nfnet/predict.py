"""Classifies images with weights in any format that this project reads.

    python -m nfnet.predict --weights=PATH a.jpg b.png FOLDER [--images=LIST.txt]
    python -m nfnet.predict --weights=PATH FOLDER --csv=OUT.csv --json=OUT.json
    python -m nfnet.predict --weights=PATH --inputs=x.npy --logits_out=y.npy

The first command prints the five most probable classes (--top) of each image: files, all JPEG, PNG
and WebP files of folders and their subfolders, and those that a list names, one per line. The
second writes them to files instead. The third takes images that are already normalized, float32
[images, height, width, 3], and writes float32 [images, classes]; --logits_out takes image files as
well.

An image that cannot be read or decoded is reported, and the others are classified nevertheless; the
exit code is then 2. In the files, such an image has an error, and NaN as logits.

PATH is a released haiku file, a safetensors file in timm's layout, or a workdir or checkpoint of
this project. Checkpoints know their own variant, activation, numerics, resolution, way of resizing
and class names; --class_names_file names those of other weights, in the order of the classifier,
one per line. For released weights and timm's, images are resized as in the released code: both
sides to 32 pixels more than the crop. For weights that were trained in timm, add --numerics=timm.
"""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from nfnet.command_line import run_main
from nfnet.errors import UserError, format_count
from nfnet.foreign_files.regular_files import open_regular
from nfnet.images.network_input import check_network_input
from nfnet.inference import (
  Classifier,
  as_text,
  outcome_of,
  predict,
  read_images,
)
from nfnet.prediction.classifier_flags import (
  check_variant_flag,
  classifier_of_flags,
  define_classifier_flags,
)
from nfnet.prediction.image_files import list_images
from nfnet.prediction.result_files import Write, csv_file, json_file, logits_file
from nfnet.system.paths import define_path
from nfnet.system.standard_streams import is_output_lost

# Batches that threads may have read before they are needed.
_BATCHES_AHEAD = 2


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
    # If the first is of another kind, all are; `checked_inputs` looks at the others.
    check_network_input(inputs[:1])
  except ValueError as error:
    raise UserError(f"inputs {path!r}: {error}") from error
  return inputs


def checked_inputs(path: str, inputs: np.ndarray) -> Iterator[np.ndarray | UserError]:
  """Yields each image, or an error in its place if it is not normalized.

  Args:
    path: path of the file.
    inputs: float32 [n, height, width, 3].
  """
  for i, image in enumerate(inputs):
    try:
      # The network warns of what is doubtful.
      with warnings.catch_warnings(action="ignore"):
        check_network_input(image[None])
    except ValueError as error:
      yield UserError(f"inputs {path!r}, image {i}: {error}")
    else:
      yield image


def _define_flags() -> None:
  define_classifier_flags()
  define_path(
    "inputs", None, "Normalized images in a .npy file, instead of image files.", use="read"
  )
  define_path(
    "images", None, "Text file with paths of images or folders, one per line.", use="read"
  )
  define_path("logits_out", None, "Write the logits to this .npy file.", use="write file")
  define_path("json", None, "Write the most probable classes to this JSON file.", use="write file")
  define_path(
    "csv", None, "Write them to this CSV file, one line for each image.", use="write file"
  )
  flags.DEFINE_integer("top", 5, "Number of most probable classes of each image.", lower_bound=1)
  flags.DEFINE_integer("batch_size", 16, "Images computed at once.", lower_bound=1)


def main(argv: list[str]) -> None:
  """Predicts for the images that the command line names."""
  arguments = flags.FLAGS
  if bool(argv[1:] or arguments.images) == bool(arguments.inputs):
    raise UserError("give either image files, folders or --images=LIST.txt, or --inputs=FILE.npy")
  for flag in ("pixels", "resize"):
    if arguments.inputs and arguments[flag].value is not None:
      raise UserError(f"--{flag} is for image files; --inputs are used as they are")
  check_variant_flag()
  inputs = read_inputs(arguments.inputs) if arguments.inputs else None
  paths = list_images(argv[1:], arguments.images)
  _check_no_image_is_written(paths)
  classifier = classifier_of_flags()
  if inputs is None:
    names, images = (
      paths,
      read_images(paths, classifier, ahead=_BATCHES_AHEAD * arguments.batch_size),
    )
  else:
    names = [f"{arguments.inputs}[{i}]" for i in range(len(inputs))]
    images = checked_inputs(arguments.inputs, inputs)
  with contextlib.ExitStack() as opened:
    files = _open_files(opened, classifier, len(names))
    if classifier.class_names is None and not arguments.logits_out:
      print(
        f"weights {arguments.weights!r} do not name their classes: they are numbered from 0, in "
        "the order of the classifier",
        file=sys.stderr,
      )
    _predict(classifier, names, images, files)


def _check_no_image_is_written(paths: Sequence[str]) -> None:
  arguments = flags.FLAGS
  named = {"json": arguments.json, "csv": arguments.csv, "logits_out": arguments.logits_out}
  written = {os.path.abspath(path): flag for flag, path in named.items() if path is not None}
  for path in paths if written else ():
    if flag := written.get(os.path.abspath(path)):
      raise UserError(f"--{flag}={path} is one of the images; give another path")


def _open_files(
  opened: contextlib.ExitStack, classifier: Classifier, num_images: int
) -> list[Write]:
  """Opens the files that the flags name, and returns the functions that write to them."""
  arguments = flags.FLAGS
  top = min(arguments.top, classifier.model.num_classes)
  files = []
  if arguments.json:
    files.append(json_file(arguments.json, arguments.weights))
  if arguments.csv:
    files.append(csv_file(arguments.csv, top))
  if arguments.logits_out:
    files.append(logits_file(arguments.logits_out, num_images, classifier.model.num_classes))
  return [opened.enter_context(file) for file in files]


def _predict(
  classifier: Classifier,
  names: Sequence[str],
  images: Iterator[np.ndarray | UserError],
  files: Sequence[Write],
) -> None:
  """Writes the outcome of each image to the files or, if there are none, prints it.

  Raises:
    UserError: images cannot be read; the others have been classified.
  """
  batch_size, failed, first_seconds = flags.FLAGS.batch_size, 0, 0.0
  results = predict(classifier, images, num_images=len(names), batch_size=batch_size)
  for count, (name, logits) in enumerate(zip(names, results, strict=True), start=1):
    if count == 1:
      # The first batch has been compiled and computed.
      first_seconds = time.monotonic()
    outcome = outcome_of(classifier, name, logits, flags.FLAGS.top)
    for write in files:
      write(outcome)
    if isinstance(logits, UserError):
      if len(names) == 1:
        raise logits
      failed += 1
      tqdm.write(str(logits), file=sys.stderr)
    elif not files:
      tqdm.write(as_text(outcome))
      if is_output_lost():
        # Nobody would see the others.
        return
  if len(names) > batch_size:
    seconds = time.monotonic() - first_seconds
    print(
      f"{format_count(len(names), 'image')}; {(len(names) - batch_size) / seconds:,.1f} images/s "
      "after the first batch",
      file=sys.stderr,
    )
  if failed:
    raise UserError(
      f"{failed} of {format_count(len(names), 'image')} could not be classified, for the reasons "
      "above; the others were"
    )


if __name__ == "__main__":
  _define_flags()
  run_main(main)
