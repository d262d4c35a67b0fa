"""Writes predictions to files while they are made: JSON, CSV, and logits as a NumPy array.

Nothing is kept in memory, so that the number of images does not matter. Each function is a context
manager that yields the function which writes the outcome of one image.
"""

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from nfnet.errors import UserError
from nfnet.system.paths import open_to_write


class Prediction(NamedTuple):
  """A class and its probability.

  Attributes:
    index: index of the class.
    name: name of the class, or "class INDEX".
    probability: its probability, 0 to 1.
  """

  index: int
  name: str
  probability: float


class Outcome(NamedTuple):
  """The result for one image.

  Attributes:
    image: name of the image.
    logits: float32 [classes]; None if the image cannot be read.
    predictions: the most probable classes; empty if there are no probabilities.
    error: reason why there are no predictions, or None.
  """

  image: str
  logits: np.ndarray | None
  predictions: tuple[Prediction, ...]
  error: str | None


Write = Callable[[Outcome], None]


@contextlib.contextmanager
def json_file(path: str, weights: str) -> Iterator[Write]:
  """Writes {"weights": ..., "images": [{"image": ..., "classes": [...]} or {..., "error": ...}]}.

  An interrupted file is whole JSON, too.

  Args:
    path: path of the file.
    weights: path of the weights.
  """
  with _writing("json", path) as write:
    write(f'{{\n "weights": {json.dumps(weights)},\n "images": ['.encode())
    separator = "\n  "

    def write_outcome(outcome: Outcome) -> None:
      nonlocal separator
      value = {"image": outcome.image}
      if outcome.error is not None:
        value["error"] = outcome.error
      else:
        value["classes"] = [prediction._asdict() for prediction in outcome.predictions]
      write(f"{separator}{json.dumps(value)}".encode())
      separator = ",\n  "

    try:
      yield write_outcome
    finally:
      write(b"\n ]\n}\n")


@contextlib.contextmanager
def csv_file(path: str, predictions: int) -> Iterator[Write]:
  """Writes a line for each image: its name, pairs of class and probability, and an error.

  Args:
    path: path of the file.
    predictions: number of pairs.
  """
  with _writing("csv", path) as write:

    def write_row(cells: list[object]) -> None:
      text = io.StringIO()
      csv.writer(text, lineterminator="\n").writerow(cells)
      # The bytes of file names that are not UTF-8 are escaped.
      write(text.getvalue().encode(errors="backslashreplace"))

    numbers = range(1, predictions + 1)
    pairs = [name for k in numbers for name in (f"class_{k}", f"probability_{k}")]
    write_row(["image", *pairs, "error"])

    def write_outcome(outcome: Outcome) -> None:
      cells = [cell for one in outcome.predictions for cell in (one.name, f"{one.probability:.6g}")]
      cells += [""] * (2 * predictions - len(cells))
      write_row([outcome.image, *cells, outcome.error or ""])

    yield write_outcome


@contextlib.contextmanager
def logits_file(path: str, num_images: int, num_classes: int) -> Iterator[Write]:
  """Writes float32 [images, classes] as a .npy file; NaN where an image cannot be read.

  Args:
    path: path of the file.
    num_images: number of rows.
    num_classes: number of columns.
  """
  header = io.BytesIO()
  shape = (num_images, num_classes)
  np.lib.format.write_array_header_1_0(
    header, {"descr": "<f4", "fortran_order": False, "shape": shape}
  )
  with _writing("logits_out", path) as write:
    write(header.getvalue())

    def write_outcome(outcome: Outcome) -> None:
      row = np.full(num_classes, np.nan) if outcome.logits is None else outcome.logits
      write(row.astype("<f4").tobytes())

    yield write_outcome


@contextlib.contextmanager
def _writing(flag: str, path: str) -> Iterator[Callable[[bytes], None]]:
  """Yields the function that writes bytes to the file of a flag, or raises UserError."""

  def write(content: bytes) -> None:
    try:
      opened.write(content)
    except OSError as error:
      # Here, and not around all that is done while the file is open, so that the flag is right.
      raise UserError(f"--{flag}={path} cannot be written: {error.strerror}") from error

  with open_to_write(flag, path) as file:
    opened: BinaryIO = file
    yield write
