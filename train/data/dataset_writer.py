"""Writes a data set: record files in a deterministic order, then the manifest.

Until it is finished, the folder holds `partial/` with what is needed to continue after a kill: the
plan, the record file being written, and a note for each finished one. The manifest comes last; a
folder with a manifest is finished.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import tqdm

from nfnet.errors import UserError
from nfnet.images.decoding import BadImageError, decode_image
from train.data import record_files
from train.data.image_sources import Source, SourceImage
from train.data.manifest import (
  MANIFEST_NAME,
  Manifest,
  Split,
  describe_file,
  record_file_from_json,
  save_manifest,
)
from train.data.workers import exit_with_parent

# Large enough for a big data set to need only a few thousand files, and small enough that a kill
# loses little work.
RECORD_FILE_BYTES = 256 * 2**20

_PARTIAL = "partial"
_PLAN = "plan.json"
# Of each task's images a worker's answer waits in memory, and there are up to 4 tasks a worker.
_IMAGES_PER_TASK = 16
_BYTES_PER_TASK = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class _BadImage:
  name: str
  reason: str


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
    UserError: an image cannot be decoded, or the folder cannot be written to.
  """
  folder = pathlib.Path(out)
  file_names = {
    split: _file_names(split, images, files_per_split) for split, images in source.splits.items()
  }
  plan = {
    "source_sha256": _source_sha256(source),
    "shards": file_names,
    "seed": seed,
    "skip_bad_images": skip_bad_images,
    "writer_options": writer_options,
  }
  with _explained_errors(folder):
    _claim_folder(folder, plan)
    splits = {}
    skipped: list[str] = []
    with _ordered_map(workers) as ordered_map:
      for split, images in source.splits.items():
        splits[split] = _write_split(
          folder,
          file_names[split],
          _shuffled(images, seed),
          tqdm.tqdm(total=len(images), desc=split, unit="image"),
          ordered_map,
          writer_options,
          skipped if skip_bad_images else None,
        )
    manifest = Manifest(
      class_names=source.class_names,
      labels_per_record_max=max(
        len(image.labels) for images in source.splits.values() for image in images
      ),
      splits=splits,
      skipped_images=tuple(sorted(skipped)),
    )
    verify_with_progress(folder, manifest)
    save_manifest(folder, manifest)
    shutil.rmtree(folder / _PARTIAL)
  return manifest


def verify_with_progress(folder: str | os.PathLike[str], manifest: Manifest) -> None:
  """Runs `record_files.verify` with a progress bar; raises UserError at the first difference."""
  total_bytes = sum(split.size_bytes for split in manifest.splits.values())
  with tqdm.tqdm(total=total_bytes, desc="verify", unit="B", unit_scale=True) as progress:
    for record_file in record_files.verify(folder, manifest):
      progress.update(record_file.size_bytes)


def _file_names(split: str, images: Sequence[SourceImage], files: int | None) -> list[str]:
  if files is None:
    files = -(-sum(image.size_bytes for image in images) // RECORD_FILE_BYTES)
  count = min(max(1, files), len(images))
  return [f"{split}-{index:05d}-of-{count:05d}.array_record" for index in range(count)]


def _shuffled(images: Sequence[SourceImage], seed: int) -> list[SourceImage]:
  # Sorted by hash, because the stream of a random generator may change with the library's version.
  return sorted(
    images, key=lambda image: hashlib.sha256(os.fsencode(f"{seed} {image.name}")).digest()
  )


def _source_sha256(source: Source) -> str:
  digest = hashlib.sha256(json.dumps(source.class_names).encode())
  for split, images in source.splits.items():
    digest.update(split.encode())
    for image in images:
      digest.update(image.fingerprint() + b"\n")
  return digest.hexdigest()


def _claim_folder(folder: pathlib.Path, plan: dict) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  found = {entry.name for entry in folder.iterdir()}
  if MANIFEST_NAME in found:
    raise UserError(f"{folder} already holds a finished data set: choose another --out")
  partial = folder / _PARTIAL
  plan_path = partial / _PLAN
  ours = {_PARTIAL} if plan_path.exists() else set()
  if ours and json.loads(plan_path.read_text()) != plan:
    raise UserError(
      f"{folder} holds the beginning of a data set of another source or other options: "
      "delete it or choose another --out"
    )
  if ours:
    ours.update(file for files in plan["shards"].values() for file in files)
  if foreign := sorted(found - ours):
    raise UserError(f"{folder} holds other files, such as {foreign[0]}: choose another --out")
  if not ours:
    partial.mkdir()
    unfinished = partial / "plan.tmp"
    unfinished.write_text(json.dumps(plan))
    unfinished.replace(plan_path)


def _write_split(
  folder: pathlib.Path,
  files: Sequence[str],
  images: Sequence[SourceImage],
  progress: tqdm.tqdm,
  ordered_map: Callable,
  writer_options: str,
  skipped: list[str] | None,
) -> Split:
  finished = []
  next_id = 0
  with progress:
    for index, file in enumerate(files):
      note_path = folder / _PARTIAL / f"{file}.json"
      start, stop = (len(images) * edge // len(files) for edge in (index, index + 1))
      if note_path.exists():
        note = json.loads(note_path.read_text())
        progress.update(stop - start)
      else:
        note = _write_file(
          folder,
          file,
          next_id,
          ordered_map(images[start:stop]),
          progress,
          writer_options,
          skip=skipped is not None,
        )
        unfinished = note_path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(note))
        unfinished.replace(note_path)
      if skipped is not None:
        skipped += note["skipped"]
      finished.append(record_file_from_json(note["shard"]))
      next_id += finished[-1].records
  if not next_id:
    raise UserError(f"none of the {len(images)} images of split {progress.desc!r} can be decoded")
  return Split(records=next_id, record_files=tuple(finished))


def _write_file(
  folder: pathlib.Path,
  file: str,
  first_id: int,
  images: Iterable[tuple[SourceImage, bytes | _BadImage]],
  progress: tqdm.tqdm,
  writer_options: str,
  *,
  skip: bool,
) -> dict:
  unfinished = folder / _PARTIAL / file
  skipped = []
  written = 0
  with record_files.open_writer(unfinished, writer_options) as writer:
    for image, content in images:
      if isinstance(content, _BadImage):
        if not skip:
          raise UserError(
            f"image {content.name} cannot be decoded ({content.reason}): remove it, or leave out "
            "all such images with --skip_bad_images"
          )
        skipped.append(content.name)
      else:
        record = record_files.Record(first_id + written, image.labels, content)
        writer.write(record_files.encode_record(record))
        written += 1
      progress.update()
  unfinished.replace(folder / file)
  finished = describe_file(folder, file, written)
  return {"shard": dataclasses.asdict(finished), "skipped": skipped}


def _read_checked(images: Sequence[SourceImage]) -> list[bytes | _BadImage]:
  contents: list[bytes | _BadImage] = []
  for image in images:
    try:
      content = image.read()
      decode_image(content)
      contents.append(content)
    except BadImageError as error:
      contents.append(_BadImage(image.name, str(error)))
    except OSError as error:
      raise UserError(f"cannot read image {image.name}: {error.strerror or error}") from error
  return contents


@contextlib.contextmanager
def _ordered_map(workers: int) -> Iterator[Callable]:
  """Yields a function from images to pairs (image, content) in order, with bounded read-ahead."""
  if not workers:
    yield lambda images: (
      (image, content) for image in images for content in _read_checked([image])
    )
    return
  with concurrent.futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context("spawn"), initializer=_initialize_worker
  ) as executor:

    def ordered_map(images: Sequence[SourceImage]) -> Iterator:
      tasks: collections.deque = collections.deque()
      for chunk in _tasks(images):
        tasks.append((chunk, executor.submit(_read_checked, chunk)))
        if len(tasks) > 4 * workers:
          yield from _finished(*tasks.popleft())
      while tasks:
        yield from _finished(*tasks.popleft())

    yield ordered_map


def _finished(
  images: Sequence[SourceImage], future: concurrent.futures.Future
) -> Iterator[tuple[SourceImage, bytes | _BadImage]]:
  return zip(images, future.result(), strict=True)


def _tasks(images: Sequence[SourceImage]) -> Iterator[Sequence[SourceImage]]:
  """Yields the images in portions that are small in number and in bytes."""
  start = size_bytes = 0
  for stop, image in enumerate(images):
    if stop - start == _IMAGES_PER_TASK or (stop > start and size_bytes > _BYTES_PER_TASK):
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
      f"cannot write {folder}: {error.filename or ''} {error.strerror or error}; "
      "the same command continues where this one stopped"
    ) from error
  except BrokenProcessPool as error:
    raise UserError(
      "a worker process was killed, perhaps because memory ran out: run the same command again "
      "with fewer --workers; it continues where this one stopped"
    ) from error
