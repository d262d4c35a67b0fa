"""Writes a data set: record files in a deterministic order, then the manifest.

Until it is finished, the folder holds `partial/` with what is needed to continue after a kill (see
`train.data.preparation.progress`). The manifest comes last; a folder with a manifest is finished.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import tqdm

from nfnet.errors import UserError, escaped, format_count
from nfnet.images.decoding import BadImageError, decode_image
from nfnet.images.headers import read_header
from nfnet.system.durable_files import write_durably
from train.data import record_files
from train.data.manifest import (
  IMAGES_IN_TWO_SPLITS_NAME,
  REPEATED_IMAGES_NAME,
  Manifest,
  RecordFile,
  Split,
  describe_file,
  load_manifest,
  save_manifest,
)
from train.data.preparation import progress
from train.data.preparation.image_sizes import NO_SIDES, encode_sides, image_sizes
from train.data.preparation.same_pixels import (
  NO_DIGEST,
  find_images_in_two_splits,
  find_repeated_images,
  pixel_digest,
)
from train.data.sources.source import Source, SourceImage, UnreadableImageError
from train.data.workers import exit_with_parent

# Large enough for a big data set to need only a few thousand files, and small enough that a kill
# loses little work.
RECORD_FILE_BYTES = 256 * 2**20

# Of each task's images a worker's answer waits in memory, and there are up to 4 tasks a worker.
_IMAGES_PER_TASK = 16
_BYTES_PER_TASK = 16 * 2**20
_DAMAGED_IMAGES_NAMED = 3


class _GoodImage(NamedTuple):
  content: bytes
  digest: bytes
  sides: bytes


class _BadImage(NamedTuple):
  name: str
  reason: str


class _Written(NamedTuple):
  """A split that has been written.

  Attributes:
    split: its entry for the manifest.
    skipped: names of images that were left out.
    digests: digests of the pixels of all images.
    sides: heights and widths of all images.
  """

  split: Split
  skipped: list[str]
  digests: bytes
  sides: bytes


def write_dataset(
  out: str | os.PathLike[str],
  source: Source,
  *,
  files_per_split: int | None = None,
  seed: int = 0,
  workers: int = 0,
  skip_bad_images: bool = False,
  writer_options: str = record_files.WRITER_OPTIONS,
) -> Manifest:
  """Writes every split of a source; the same arguments give the same bytes.

  Args:
    out: folder that is new or empty, or that an unfinished run with the same arguments has left.
    source: the images.
    files_per_split: number of record files of each split; None makes files of about 256 MiB.
    seed: seed of the order of the records.
    workers: number of processes that read and decode the images; 0 does it in this process.
    skip_bad_images: whether images that cannot be decoded are left out and listed in the manifest.
    writer_options: options of ArrayRecord.

  Returns:
    The manifest of the finished data set.

  Raises:
    InUseError: another process is writing the data set.
    UserError: an image cannot be decoded, or the folder cannot be written to.
  """
  folder = pathlib.Path(out)
  file_names = {
    split: _file_names(split, images, files_per_split) for split, images in source.splits.items()
  }
  # Without skip_bad_images, which whoever meets a bad image may add to go on from there.
  plan = {
    "source_sha256": _source_sha256(source),
    "shards": file_names,
    "seed": seed,
    "writer_options": writer_options,
  }
  with _explained_errors(folder), progress.claim(folder, plan) as claimed:
    if claimed.is_finished():
      # The process was killed after it had written the manifest.
      claimed.remove()
      return load_manifest(folder)
    if not skip_bad_images:
      try:
        _refuse_known_damage(source)
      except UserError:
        # A corrected source may take the folder, unless it holds what an earlier command has made.
        if not any((folder / file).exists() for files in file_names.values() for file in files):
          claimed.remove()
        raise
    written = {}
    ordered = {split: _shuffled(images, seed) for split, images in source.splits.items()}
    with _ordered_map(workers) as ordered_map:
      for split, images in ordered.items():
        written[split] = _write_split(
          claimed,
          folder,
          split,
          file_names[split],
          images,
          ordered_map,
          writer_options,
          skip=skip_bad_images,
        )
    names = {split: [image.name for image in images] for split, images in ordered.items()}
    digests = {split: one.digests for split, one in written.items()}
    same = find_images_in_two_splits(names, digests)
    repeated = {
      split: find_repeated_images(names[split], [image.labels for image in images], digests[split])
      for split, images in ordered.items()
    }
    groups = [
      [[name, [source.class_names[label] for label in labels]] for name, labels in group]
      for found in repeated.values()
      for group in found
    ]
    # In files of their own, because there may be as many pairs as images.
    for name, found in ((IMAGES_IN_TWO_SPLITS_NAME, same), (REPEATED_IMAGES_NAME, groups)):
      if found:
        write_durably(folder / name, json.dumps(found, indent=0) + "\n")
    manifest = Manifest(
      class_names=source.class_names,
      labels_per_record_max=max(
        len(image.labels) for images in source.splits.values() for image in images
      ),
      splits={split: one.split for split, one in written.items()},
      skipped_images=tuple(sorted(name for one in written.values() for name in one.skipped)),
      images_in_two_splits=len(same),
      repeated_images=sum(len(group) - 1 for group in groups),
      repeated_in_other_classes=sum(
        classes != group[0][1] for group in groups for _, classes in group
      ),
      image_sizes={split: image_sizes(one.sides) for split, one in written.items()},
    )
    _verify_written(claimed, folder, manifest)
    save_manifest(folder, manifest)
    claimed.remove()
  return manifest


def _refuse_known_damage(source: Source) -> None:
  """Refuses, before any is read, images whose damage was seen when they were listed."""
  damaged = [image for images in source.splits.values() for image in images if image.problem]
  if not damaged:
    return
  named = ", ".join(
    f"image {image.name} cannot be read ({image.problem})"
    for image in damaged[:_DAMAGED_IMAGES_NAMED]
  )
  if (more := len(damaged) - _DAMAGED_IMAGES_NAMED) > 0:
    named += f", and {more:,} more"
  if len(damaged) > 1:
    total = sum(map(len, source.splits.values()))
    named = f"{len(damaged):,} of {format_count(total, 'image')} cannot be used: {named}"
  raise UserError(
    f"{named}: add --skip_bad_images to leave out all such images, or correct the source"
  )


def verify_with_progress(folder: str | os.PathLike[str], manifest: Manifest) -> None:
  """Runs `record_files.verify` with a progress bar; raises UserError at the first difference."""
  for _ in _verify(folder, manifest):
    pass


def _verify(folder: str | os.PathLike[str], manifest: Manifest) -> Iterator[RecordFile]:
  total_bytes = sum(split.size_bytes for split in manifest.splits.values())
  with tqdm.tqdm(
    total=total_bytes, desc="verify", unit="B", unit_scale=True, disable=None
  ) as progress_bar:
    for record_file in record_files.verify(folder, manifest):
      progress_bar.update(record_file.size_bytes)
      yield record_file


def _verify_written(claimed: progress.Progress, folder: pathlib.Path, manifest: Manifest) -> None:
  """Verifies the data set; a record file that is damaged will be written by the same command."""
  verified = 0
  try:
    for _ in _verify(folder, manifest):
      verified += 1
  except UserError as error:
    files = [file.file for split in manifest.splits.values() for file in split.record_files]
    claimed.discard_note(files[verified])
    raise UserError(f"{error}; the same command writes this file again") from error


def _file_names(split: str, images: Sequence[SourceImage], files: int | None) -> list[str]:
  if files is None:
    files = -(-sum(image.size_bytes for image in images) // RECORD_FILE_BYTES)
  count = min(max(1, files), len(images))
  return [f"{split}-{index:05d}-of-{count:05d}.array_record" for index in range(count)]


def _shuffled(images: Sequence[SourceImage], seed: int) -> list[SourceImage]:
  # Sorted by hash, because the stream of a random generator may change with the library's version.
  def place(name: str) -> bytes:
    return hashlib.sha256(os.fsencode(f"{seed} {name}")).digest()

  return sorted(
    images, key=lambda image: (place(image.group) if image.group else b"", place(image.name))
  )


def _source_sha256(source: Source) -> str:
  digest = hashlib.sha256(json.dumps(source.class_names).encode())
  for split, images in source.splits.items():
    digest.update(split.encode())
    for image in images:
      digest.update(image.fingerprint() + b"\n")
  return digest.hexdigest()


def _write_split(
  claimed: progress.Progress,
  folder: pathlib.Path,
  split: str,
  files: Sequence[str],
  images: Sequence[SourceImage],
  ordered_map: Callable,
  writer_options: str,
  *,
  skip: bool,
) -> _Written:
  """Writes those record files of a split that are not finished yet."""
  finished = []
  skipped: list[str] = []
  digests, sides = bytearray(), bytearray()
  with tqdm.tqdm(total=len(images), desc=split, unit="image", disable=None) as progress_bar:
    for index, file in enumerate(files):
      start, stop = (len(images) * edge // len(files) for edge in (index, index + 1))
      note = claimed.load_note(file, stop - start)
      if note and (skip or not note.skipped):
        progress_bar.update(stop - start)
      else:
        note = _write_file(
          claimed,
          folder,
          file,
          sum(record_file.records for record_file in finished),
          ordered_map(images[start:stop]),
          progress_bar,
          writer_options,
          skip=skip,
        )
        claimed.save_note(note)
      skipped += note.skipped
      digests += note.digests
      sides += note.sides
      finished.append(note.record_file)
  records = sum(record_file.records for record_file in finished)
  if not records:
    raise UserError(
      f"no image of split {split!r} can be decoded, of {format_count(len(images), 'image')}"
    )
  described = Split(records=records, record_files=tuple(finished))
  return _Written(described, skipped, bytes(digests), bytes(sides))


def _write_file(
  claimed: progress.Progress,
  folder: pathlib.Path,
  file: str,
  first_id: int,
  images: Iterable[tuple[SourceImage, _GoodImage | _BadImage]],
  progress_bar: tqdm.tqdm,
  writer_options: str,
  *,
  skip: bool,
) -> progress.Note:
  skipped = []
  digests, sides = bytearray(), bytearray()
  written = 0
  with record_files.open_writer(claimed.unfinished_path(file), writer_options) as writer:
    for image, read in images:
      if isinstance(read, _BadImage):
        if not skip:
          raise UserError(
            f"image {read.name} {read.reason}: add --skip_bad_images to leave out all such images "
            "and go on from here, or correct the source and give the command with a new --out"
          )
        skipped.append(read.name)
        digests += NO_DIGEST
        sides += NO_SIDES
      else:
        record = record_files.Record(first_id + written, image.labels, read.content)
        writer.write(record_files.encode_record(record))
        written += 1
        digests += read.digest
        sides += read.sides
      progress_bar.update()
  claimed.publish(file)
  return progress.Note(
    record_file=describe_file(folder, file, written),
    skipped=tuple(skipped),
    digests=bytes(digests),
    sides=bytes(sides),
  )


def _read_checked(images: Sequence[SourceImage]) -> list[_GoodImage | _BadImage]:
  read: list[_GoodImage | _BadImage] = []
  for image in images:
    name = escaped(image.name)
    try:
      content = image.read()
      digest = pixel_digest(decode_image(content))
      header = read_header(content)
      read.append(_GoodImage(content, digest, encode_sides(header.height, header.width)))
    except BadImageError as error:
      read.append(_BadImage(name, f"cannot be decoded ({error})"))
    except UnreadableImageError as error:
      read.append(_BadImage(name, f"cannot be read ({error})"))
    except OSError as error:
      raise UserError(f"cannot read image {name}: {error.strerror or error}") from error
  return read


@contextlib.contextmanager
def _ordered_map(workers: int) -> Iterator[Callable]:
  """Yields a function from images to pairs (image, content) in order, with bounded read-ahead."""
  if not workers:
    yield lambda images: ((image, read) for image in images for read in _read_checked([image]))
    return
  with (
    _leaving_on_sigterm(),
    concurrent.futures.ProcessPoolExecutor(
      workers, multiprocessing.get_context("spawn"), initializer=_initialize_worker
    ) as executor,
  ):

    def ordered_map(images: Sequence[SourceImage]) -> Iterator:
      tasks: collections.deque = collections.deque()
      for chunk in _tasks(images):
        tasks.append((chunk, executor.submit(_read_checked, chunk)))
        if len(tasks) > 4 * workers:
          yield from _finished(*tasks.popleft())
      while tasks:
        yield from _finished(*tasks.popleft())

    try:
      yield ordered_map
    except BaseException:
      # Otherwise the workers would first read all that they have been asked for.
      executor.shutdown(cancel_futures=True)
      raise


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
  """Makes SIGTERM raise SystemExit: a process that it ends leaves the pool's semaphores behind.

  Python would remove them and print a warning.
  """

  def leave(*unused) -> None:
    raise SystemExit(128 + signal.SIGTERM)

  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


def _finished(
  images: Sequence[SourceImage], future: concurrent.futures.Future
) -> Iterator[tuple[SourceImage, _GoodImage | _BadImage]]:
  return zip(images, future.result(), strict=True)


def _tasks(images: Sequence[SourceImage]) -> Iterator[Sequence[SourceImage]]:
  """Yields the images in portions that are small in number and in bytes."""
  start = size_bytes = 0
  for stop, image in enumerate(images):
    # Images of a group stay together, whatever their number.
    is_long = stop - start >= _IMAGES_PER_TASK and (
      not image.group or image.group != images[stop - 1].group
    )
    if is_long or (stop > start and size_bytes > _BYTES_PER_TASK):
      yield images[start:stop]
      start, size_bytes = stop, 0
    size_bytes += image.size_bytes
  if start < len(images):
    yield images[start:]


def _initialize_worker() -> None:
  # Ctrl-C reaches every process of the terminal; workers ignore it, because the parent ends them.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  exit_with_parent()


@contextlib.contextmanager
def _explained_errors(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f"cannot write {folder}: {error.filename or ''} "
      f"{error.strerror or error}; "
      "the same command continues where this one stopped"
    ) from error
  except BrokenProcessPool as error:
    raise UserError(
      "a worker process was killed, perhaps because memory ran out: run the same command again "
      "with fewer --workers; it continues where this one stopped"
    ) from error
