"""Makes a source of labeled images: numbers the classes, holds images out, says what is missing."""

import collections
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nfnet.errors import UserError, format_count, quoted, shortened, there_are
from nfnet.weights.class_names import composed
from train.data.preparation import file_tree
from train.data.preparation.class_folders import TEST, TRAIN, VALIDATION, check_class_names
from train.data.sources.source import SPLITS, Options, Source, SourceImage

# A label beyond this is not a class index: ImageNet-21k has 21,841 classes, JFT 30,000.
_CLASSES_MAX = 2**20
_LABELS_PER_IMAGE_MAX = 2**10
# Beyond this many classes for each label, numbers may be ids. A sample of a large data set has such
# gaps, too, so they are refused only above the number of classes that any data set has.
_CLASSES_PER_LABEL_MAX = 10
_CLASSES_WITH_GAPS_MAX = 2**15


class Labeled(NamedTuple):
  """An image before its classes have indices.

  Attributes:
    split: "train", "validation" or "test".
    labels: names of classes, or class indices; none if there is no label.
    make: function of class indices that returns the image.
    is_unlabeled: whether the source has the image without a label, as test images of a competition
      are, and nothing is damaged.
  """

  split: str
  labels: tuple[str, ...] | tuple[int, ...]
  make: Callable[[tuple[int, ...]], SourceImage]
  is_unlabeled: bool = False


def make_source(
  images: Iterable[Labeled],
  options: Options,
  *,
  how: str,
  where: str,
  class_names: Sequence[str] = (),
  by_number: bool = True,
  notes: Sequence[str] = (),
) -> Source:
  """Numbers the classes of images and puts the images in order.

  Classes that have names are sorted by name, or by number if all names are whole numbers and
  `by_number` is true, unless `class_names` or the option of that name says in which order they are.

  Args:
    images: the images; all labels are names, or all are indices.
    options: what the user says.
    how: how the source was understood.
    where: the source, for messages.
    class_names: names of the classes by index, if the source has them.
    by_number: whether names that are whole numbers are in the order of these. Those of class
      folders are not, and so not those of tar files in their place.
    notes: sentences about what was left out.

  Raises:
    UserError: there are no images, labels do not fit the names, names of classes or images are
      there twice, or fewer than two classes.
  """
  images = list(images)
  if class_names and options.class_names and tuple(class_names) != options.class_names:
    raise UserError(f"--class_names: {where} names its classes itself; leave out the flag")
  names = tuple(class_names or options.class_names)
  labels = {label for image in images for label in image.labels}
  kinds = {type(label) for label in labels}
  if not labels:
    raise UserError(f"{where} has no image with a label{unusable(images)}")
  if len(kinds) > 1:
    raise UserError(f"{where} has labels that are numbers and labels that are names: take one kind")
  if kinds == {str}:
    names = names or tuple(
      sorted(labels, key=_number if by_number and _are_numbers(labels) else None)
    )
    indices: dict = {composed(name): index for index, name in enumerate(names)}
    if unknown := sorted(label for label in labels if composed(label) not in indices):
      raise UserError(
        f"{where} has the label {quoted(unknown[0])}, which is not among the "
        f"names of {format_count(len(names), 'class')}: correct it or add it to "
        f"{'the names that the source itself has' if class_names else '--class_names'}"
      )
    indices |= {label: indices[composed(label)] for label in labels}
  else:
    if not names:
      names, sparse = _digits(labels, where)
      notes = (*notes, *sparse)
    indices = {index: index for index in range(len(names))}
    if beyond := sorted(label for label in labels if label not in indices):
      raise UserError(
        f"{where} has the label {beyond[0]}, but "
        f"{there_are(len(names), 'class name')}: labels are 0 to {len(names) - 1}"
      )
  check_class_names(names, where)
  if len(names) < 2:
    raise UserError(
      f"{where} has only one class, {shortened(names[0])}; a classifier needs two{unusable(images)}"
    )
  shared: dict[tuple, tuple[int, ...]] = {(): ()}
  splits = collections.defaultdict(list)
  for image in images:
    if image.labels not in shared:
      own = tuple(sorted({indices[label] for label in image.labels}))
      if len(own) > _LABELS_PER_IMAGE_MAX:
        raise UserError(f"{where} has an image of {len(own):,} labels; there may be 1,024")
      shared[image.labels] = own
    splits[image.split].append(image.make(shared[image.labels]))
  return finish_source(names, splits, options, how=how, where=where, notes=notes)


def unusable(images: Sequence[Labeled]) -> str:
  """Returns how many images have no label and why the first has none, to end a message; or ""."""
  without = [image for image in images if not image.labels]
  if not without:
    return ""
  first = without[0].make(())
  reason = first.problem or "it has no label"
  count = format_count(len(without), "image")
  return f"; {count} cannot be used, such as {quoted(first.name)}: {reason}"


def without_unlabeled_splits(images: Sequence[Labeled]) -> tuple[list[Labeled], list[str]]:
  """Leaves out the splits of which all images are there without a label.

  A split whose images are damaged, or are not where a table says, stays.

  Returns:
    The images of the other splits, and a sentence for each split that was left out.
  """
  counts = collections.Counter(image.split for image in images)
  labeled = {image.split for image in images if not image.is_unlabeled}
  notes = [
    f"left out: {split}: {format_count(count, 'image')} without a label"
    for split, count in counts.items()
    if split not in labeled
  ]
  return [image for image in images if image.split in labeled], notes


def finish_source(
  class_names: Sequence[str],
  splits: Mapping[str, Iterable[SourceImage]],
  options: Options,
  *,
  how: str,
  where: str,
  notes: Sequence[str] = (),
) -> Source:
  """Sorts the images of each split by name, and holds some out if there is only one split.

  A source without "validation" that has "test" is evaluated on that.

  Args:
    class_names: names of the classes by index.
    splits: images by split.
    options: what the user says.
    how: how the source was understood.
    where: the source, for messages.
    notes: sentences about what was left out.

  Raises:
    UserError: there is no training split, or two images of a split have one name.
  """
  found = {split: tuple(sorted(images, key=_name)) for split, images in splits.items()}
  if not found.get(TRAIN):
    raise UserError(f"{where} has no training images")
  if TEST in found and VALIDATION not in found:
    found[VALIDATION] = found.pop(TEST)
  ordered = {split: found[split] for split in SPLITS if found.get(split)}
  for split, images in ordered.items():
    _refuse_equal_names(images, split, where)
  if len(ordered) == 1 and options.evaluation_share:
    ordered = hold_out(ordered[TRAIN], options.evaluation_share)
    share = f"{options.evaluation_share:.0%}"
    how += f"; {share} of the images are held out, by a hash of each file's name"
  several = max(len(image.labels) for images in ordered.values() for image in images)
  multiple = (
    [f"note: images have up to {several} labels each; train with --config.loss.kind=sigmoid"]
    if several > 1
    else []
  )
  return Source(
    tuple(class_names),
    ordered,
    how,
    (*notes, *multiple, *notes_of_classes(class_names, ordered)),
  )


def notes_of_classes(
  class_names: Sequence[str], splits: Mapping[str, Sequence[SourceImage]]
) -> Iterator[str]:
  """Yields a sentence for each split that lacks classes; images with a problem do not count.

  Args:
    class_names: names of the classes by index.
    splits: images by split.
  """
  for split, images in splits.items():
    present = {label for image in images if not image.problem for label in image.labels}
    absent = [name for label, name in enumerate(class_names) if label not in present]
    if absent:
      yield (
        f"note: {split} has no image of {format_count(len(absent), 'class')}: "
        f"{file_tree.examples(absent)}"
      )


def hold_out(
  images: Sequence[SourceImage], evaluation_share: float
) -> dict[str, tuple[SourceImage, ...]]:
  """Divides images into "train" and "validation" by a hash of their names.

  The split of an image depends only on its name, so that adding images moves no other image.

  Args:
    images: the images.
    evaluation_share: share that is held out.

  Raises:
    UserError: a split would have no image.
  """
  splits: dict[str, list[SourceImage]] = {TRAIN: [], VALIDATION: []}
  for image in images:
    drawn = int.from_bytes(hashlib.sha256(os.fsencode(image.name)).digest()[:8], "big") / 2**64
    splits[VALIDATION if drawn < evaluation_share else TRAIN].append(image)
  for split, chosen in splits.items():
    if not chosen:
      raise UserError(
        f"evaluation_share={evaluation_share} of {format_count(len(images), 'image')} leaves none "
        f"for {split!r}"
      )
  return {split: tuple(chosen) for split, chosen in splits.items()}


def _name(image: SourceImage) -> str:
  return image.name


def _refuse_equal_names(images: Sequence[SourceImage], split: str, where: str) -> None:
  for first, second in itertools.pairwise(images):
    if first.name == second.name:
      raise UserError(
        f"{where} has two images named {quoted(first.name)} in {split}: remove or rename one"
      )


def _are_numbers(labels: set[str]) -> bool:
  return all(label.isascii() and label.isdecimal() for label in labels)


def _number(label: str) -> tuple[int, str]:
  return int(label), label


def _digits(labels: set[int], where: str) -> tuple[tuple[str, ...], list[str]]:
  """Returns the names of classes that are indices, and a note if few of the indices occur."""
  if not 0 <= min(labels) <= max(labels) < _CLASSES_MAX:
    wrong = min(labels) if min(labels) < 0 else max(labels)
    raise UserError(f"{where} has the label {wrong}; a class index is 0 to {_CLASSES_MAX - 1:,}")
  count = max(labels) + 1
  notes = []
  if count > _CLASSES_PER_LABEL_MAX * len(labels):
    sparse = f"{format_count(len(labels), 'label')} that are numbers, the largest {count - 1:,}"
    cure = "if they are not indices, number the classes from 0 or give their names as labels"
    if count > _CLASSES_WITH_GAPS_MAX:
      raise UserError(
        f"{where} has {sparse}, for which a network would need {format_count(count, 'class')}: "
        f"{cure}"
      )
    notes.append(
      f"note: {where} has only {sparse}, so the network needs {format_count(count, 'class')}; "
      f"{cure}"
    )
  return tuple(map(str, range(count))), notes
