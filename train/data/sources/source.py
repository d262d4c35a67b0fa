"""A source is labeled images by split, each of which can be read at any time.

A source is listed once. Its images are then read in another order, by several processes, and those
that an earlier command has stored are not read again. So an image knows where its bytes are, and
does not hold them.
"""

import dataclasses
from typing import Protocol

from nfnet.errors import UserError
from train.data.preparation.class_folders import TEST, TRAIN, VALIDATION

SPLITS = (TRAIN, VALIDATION, TEST)


class UnreadableImageError(Exception):
  """Reports what is not a file that can be read, such as a link that leads nowhere or a FIFO."""


class SourceImage(Protocol):
  """An image that can be read; it is pickled for the processes that read it.

  Attributes:
    name: name that no other image of the split has; the order of the records depends on it.
    labels: class indices; none if there is a reason why the image cannot be read.
    size_bytes: number of bytes, about; decides about the number of record files.
    group: images of a source that are read faster together have the same one; others have "".
    problem: why it cannot be read, if that was known when the source was listed; others have "".
  """

  __slots__ = ()

  name: str
  labels: tuple[int, ...]
  size_bytes: int
  group: str = ""
  problem: str = ""

  def fingerprint(self) -> bytes:
    """Returns bytes that differ whenever a different image would be stored."""
    ...

  def read(self) -> bytes:
    """Returns the bytes of a JPEG, PNG or WebP file.

    Raises:
      UnreadableImageError: there is nothing that could be read.
      BadImageError: it is too large.
      OSError: it cannot be read now, but perhaps later.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Source:
  """Labeled images by split, each split sorted by name.

  Attributes:
    class_names: names of the classes, by class index.
    splits: images of "train" and "validation", perhaps "test".
    how: how the source was understood.
    notes: sentences about what was left out or is missing.
  """

  class_names: tuple[str, ...]
  splits: dict[str, tuple[SourceImage, ...]]
  how: str = ""
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The choices that a user has about a source, by the names of the flags of `train.prepare_data`.

  Attributes:
    evaluation_share: share of the images that is held out if the source has no held-out split.
    class_names: names of the classes of a source that has numbers only.
    layout: what the folders in a folder are, "splits" or "classes"; "auto" finds out.
    merge_subfolders: whether images in subfolders of a class folder belong to the class.
    labels: path of a table of labels; None looks for one.
    image_field: name of the column with the images; None looks for one.
    label_field: name of the column, or field of a JSON object, with the labels; None looks for one.
    excluded: path of a folder below the source that is not read.
  """

  evaluation_share: float = 0.1
  class_names: tuple[str, ...] = ()
  layout: str = "auto"
  merge_subfolders: bool = False
  labels: str | None = None
  image_field: str | None = None
  label_field: str | None = None
  excluded: str | None = None

  def __post_init__(self):
    if not 0 <= self.evaluation_share < 1:
      raise UserError(f"evaluation_share is {self.evaluation_share}; it must be in [0, 1)")
