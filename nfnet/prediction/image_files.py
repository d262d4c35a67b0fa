"""Lists the images to classify: files, all images of folders, and files that a list names."""

import codecs
import os
from collections.abc import Iterator, Sequence

from nfnet.errors import UserError, escaped
from nfnet.foreign_files.regular_files import read_regular_file
from nfnet.images.decoding import IMAGE_SUFFIXES
from nfnet.system.paths import is_in_bucket, local_path

# A few million paths.
_LIST_BYTES_MAX = 512 * 2**20


def list_images(paths: Sequence[str], list_file: str | None = None) -> list[str]:
  """Returns the paths of the images that a command line names, in its order.

  Of a folder, these are the files in it and in its subfolders that are named like images, in the
  order of their names; what begins with a dot is left out. Links are followed. Other paths are
  returned whether there is a file or not, whatever they are called.

  Args:
    paths: paths of files and folders.
    list_file: path of a text file with further paths, one per line, relative to the current folder.

  Raises:
    UserError: a folder has no images or cannot be read, the list cannot be read or is empty, or
      an image is in a bucket.
  """
  listed = [] if list_file is None else _listed(list_file)
  # A file that is there is read, whatever it is called.
  named = [path if os.path.exists(path) else local_path("image", path) for path in paths]
  # Other names that no file can have are reported when their turn comes, as missing files are.
  named += [local_path("image", path) if is_in_bucket(path) else path for path in listed]
  return [image for path in named for image in (_below(path) if os.path.isdir(path) else [path])]


def _listed(list_file: str) -> list[str]:
  try:
    content = read_regular_file(list_file, _LIST_BYTES_MAX)
  except OSError as error:
    raise UserError(f"--images={list_file} cannot be read: {error.strerror}") from error
  content = content.removeprefix(codecs.BOM_UTF8)
  lines = [os.fsdecode(line.removesuffix(b"\r")) for line in content.split(b"\n")]
  paths = [line for line in lines if line.strip()]
  if not paths:
    raise UserError(f"--images={list_file} names no image: write one path per line")
  return paths


def _below(folder: str) -> Iterator[str]:
  def fail(error: OSError) -> None:
    raise UserError(f"folder {error.filename!r} cannot be read: {error.strerror}") from error

  has_images, seen = False, set()
  for root, folders, files in os.walk(folder, followlinks=True, onerror=fail):
    status = os.stat(root)
    place = status.st_dev, status.st_ino
    if place in seen:
      # A link leads to a folder that has been listed, perhaps to one above.
      folders.clear()
      continue
    seen.add(place)
    # Names may be bytes that are not UTF-8.
    folders[:] = sorted((one for one in folders if not one.startswith(".")), key=os.fsencode)
    for name in sorted(files, key=os.fsencode):
      if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
        has_images = True
        yield os.path.join(root, name)
  if not has_images:
    raise UserError(f"folder {escaped(folder)!r} has no image ({', '.join(IMAGE_SUFFIXES)})")
