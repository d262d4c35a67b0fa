"""Miniatures of the sources that people have, made as their makers make them."""

import csv
import io
import json
import os
import pathlib
import tarfile

import numpy as np
import scipy.io

from tests.train.data import image_files

WORDNET_IDS = ("n01440764", "n02119789", "n03388043")


def picture(number):
  """Returns the bytes of a JPEG, a PNG or a WebP file, in turn."""
  return image_files.encode(image_files.noise(number), ("JPEG", "PNG", "WEBP")[number % 3])


def write_tar(path, members):
  """Writes a tar file of pairs of a name and a content, in this order."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for name, content in members:
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return pathlib.Path(path)


def tar_bytes(members):
  """Returns the bytes of a tar file of pairs of a name and a content."""
  content = io.BytesIO()
  with tarfile.open(fileobj=content, mode="w") as archive:
    for name, one in members:
      member = tarfile.TarInfo(name)
      member.size = len(one)
      archive.addfile(member, io.BytesIO(one))
  return content.getvalue()


def class_members(label, images):
  """Returns the members of the tar file of one class."""
  return [
    (f"{WORDNET_IDS[label]}_{index}.JPEG", picture(100 * label + index)) for index in range(images)
  ]


def write_imagenet(root, images=4, held_out=2, devkit="tar"):
  """Writes both tar files and the devkit, or the validation images as a folder."""
  root = pathlib.Path(root)
  inner = [
    (f"{name}.tar", tar_bytes(class_members(label, images)))
    for label, name in enumerate(WORDNET_IDS)
  ]
  write_tar(root / "ILSVRC2012_img_train.tar", inner)
  order = [index % 3 for index in range(3 * held_out)]
  write_tar(
    root / "ILSVRC2012_img_val.tar",
    [
      (f"ILSVRC2012_val_{place:08d}.JPEG", picture(1000 + place))
      for place in range(1, len(order) + 1)
    ],
  )
  # The numbers of the devkit are not in the order of the WordNet ids.
  numbers = {0: 3, 1: 1, 2: 2}
  synsets = np.zeros(3, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
  for label, number in numbers.items():
    synsets[number - 1] = (float(number), WORDNET_IDS[label], f"class {label}")
  meta = io.BytesIO()
  scipy.io.savemat(meta, {"synsets": synsets})
  truth = "".join(f"{numbers[label]}\n" for label in order).encode()
  data = "ILSVRC2012_devkit_t12/data"
  files = {
    f"{data}/meta.mat": meta.getvalue(),
    f"{data}/ILSVRC2012_validation_ground_truth.txt": truth,
  }
  if devkit == "tar":
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
      for name, content in files.items():
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
  elif devkit == "folder":
    (root / data).mkdir(parents=True)
    for name, content in files.items():
      (root / name).write_bytes(content)
  elif devkit == "Kaggle":
    lines = [
      f"ILSVRC2012_val_{place:08d},{WORDNET_IDS[label]} 1 2 3 4 {WORDNET_IDS[label]} 5 6 7 8"
      for place, label in enumerate(order, start=1)
    ]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
  return root


def unpack_imagenet(root, out):
  """Makes class folders of what `write_imagenet` has written, as people do."""
  out = pathlib.Path(out)
  with tarfile.open(root / "ILSVRC2012_img_train.tar") as archive:
    for member in archive:
      folder = out / "train" / member.name.removesuffix(".tar")
      folder.mkdir(parents=True)
      with tarfile.open(fileobj=archive.extractfile(member)) as inner:
        inner.extractall(folder, filter="data")
  with tarfile.open(root / "ILSVRC2012_img_val.tar") as archive:
    for place, member in enumerate(archive):
      folder = out / "val" / WORDNET_IDS[place % 3]
      folder.mkdir(parents=True, exist_ok=True)
      (folder / member.name).write_bytes(archive.extractfile(member).read())
  return out


def write_class_tars(root, images=6):
  """Writes a tar file for each class, as ImageNet-21k has."""
  for label, name in enumerate(WORDNET_IDS):
    write_tar(pathlib.Path(root, f"{name}.tar"), class_members(label, images))
  return pathlib.Path(root)


def samples(first, count, suffix=".cls", label=None):
  """Returns the members of a WebDataset shard."""
  members = []
  for number in range(first, first + count):
    value = number % 3 if label is None else label(number)
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    members += [(f"{number:06d}.jpg", picture(number)), (f"{number:06d}{suffix}", content)]
  return members


def write_webdataset(root, shards=2, images=6, **options):
  """Writes train-000000.tar and so on, and val-000000.tar."""
  root = pathlib.Path(root)
  for shard in range(shards):
    members = samples(images * shard, images, **options)
    write_tar(root / f"train-{shard:06d}.tar", members)
  write_tar(root / "val-000000.tar", samples(1000, images, **options))
  return root


def write_table(root, images=9, header=("file", "label", "split"), label=None, name="labels.csv"):
  """Writes a flat folder of images and a table of their labels; two of three are for training."""
  root = pathlib.Path(root)
  root.mkdir(parents=True, exist_ok=True)
  with open(root / name, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(header)
    for number in range(images):
      (root / f"{number:03d}.jpg").write_bytes(picture(number))
      value = image_files.CLASS_NAMES[number % 3] if label is None else label(number)
      split = "val" if number >= images * 2 // 3 else "train"
      writer.writerow([f"{number:03d}.jpg", value, split][: len(header)])
  return root


def cut(path, size_bytes):
  """Cuts off the last bytes of a file."""
  os.truncate(path, os.path.getsize(path) - size_bytes)
