"""Miniatures of the sources that people have, made as their makers make them."""

import csv
import io
import itertools
import json
import os
import pathlib
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import scipy.io

from tests.train.data import image_files
from train.data.record_files import open_writer

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


def cifar_records(first, count, classes, label_bytes=1):
  """Returns the bytes of images whose corner tells their number, red, green and blue apart."""
  content = bytearray()
  for number in range(first, first + count):
    pixels = np.zeros((3, 32, 32), np.uint8)
    pixels[:, 0, 1] = number, number + 1, number + 2
    content += bytes([9] * (label_bytes - 1) + [number % classes]) + pixels.tobytes()
  return bytes(content)


def cifar_10_files(names, images=4):
  """Returns contents of CIFAR-10's binary version by name, with a number of images in a batch."""
  batches = {
    f"data_batch_{number}.bin": cifar_records(images * number, images, len(names))
    for number in range(1, 6)
  }
  meta = "\n".join((*names, "", "")).encode()
  test = cifar_records(100, 3, len(names))
  return {**batches, "test_batch.bin": test, "batches.meta.txt": meta, "readme.html": b""}


def write_cifar_archive(path, files):
  """Writes files of CIFAR-10's binary version as they are distributed."""
  with tarfile.open(path, "w:gz") as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return path


def cut(path, size_bytes):
  """Cuts off the last bytes of a file."""
  os.truncate(path, os.path.getsize(path) - size_bytes)


def hugging_face_metadata(names=image_files.CLASS_NAMES, image="image", label="label"):
  """Returns the metadata that `datasets` writes into a parquet file."""
  label_feature = {"names": list(names), "_type": "ClassLabel"}
  features = {image: {"_type": "Image"}, label: label_feature}
  return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write_parquet(path, images, row_group_size=4, metadata=None, image="image", label="label"):
  """Writes pairs of an image's bytes and a label, as `datasets` does."""
  struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
  cells = [None if one is None else {"bytes": one, "path": None} for one, _ in images]
  table = pyarrow.table(
    {image: pyarrow.array(cells, struct), label: pyarrow.array([one for _, one in images])}
  )
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  metadata = hugging_face_metadata(image=image, label=label) if metadata is None else metadata
  pyarrow.parquet.write_table(
    table.replace_schema_metadata(metadata), path, row_group_size=row_group_size
  )
  return path


def encode_varint(value):
  """Returns a number as protocol buffers have it."""
  encoded = bytearray()
  value &= 2**64 - 1
  while value > 0x7F:
    encoded.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes(encoded) + bytes([value])


def encode_field(number, content):
  """Returns a field of bytes."""
  return encode_varint(number << 3 | 2) + encode_varint(len(content)) + content


def encode_example(features):
  """Returns a tf.train.Example of lists of bytes or of integers by name."""
  entries = b""
  for name, values in features.items():
    if all(isinstance(one, bytes) for one in values):
      feature = encode_field(1, b"".join(encode_field(1, one) for one in values))
    else:
      feature = encode_field(3, encode_field(1, b"".join(map(encode_varint, values))))
    entry = encode_field(1, name.encode()) + encode_field(2, feature)
    entries += encode_field(1, entry)
  return encode_field(1, entries)


def write_tfds(root, splits, names=image_files.CLASS_NAMES, file_format="array_record", shards=2):
  """Writes a data set of TensorFlow Datasets; splits are lists of examples' features."""
  root = pathlib.Path(root)
  root.mkdir(parents=True)
  module = "tensorflow_datasets.core.features"
  features = {
    "image": {
      "pythonClassName": f"{module}.image_feature.Image",
      "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "encodingFormat": "jpeg"},
    },
    "label": {
      "pythonClassName": f"{module}.class_label_feature.ClassLabel",
      "classLabel": {"numClasses": str(len(names))},
    },
    "file_name": {"pythonClassName": f"{module}.text_feature.Text", "text": {}},
  }
  (root / "features.json").write_text(
    json.dumps(
      {
        "pythonClassName": f"{module}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
      }
    )
  )
  (root / "label.labels.txt").write_text("\n".join(names) + "\n")
  described = []
  for split, examples in splits.items():
    edges = [len(examples) * index // shards for index in range(shards + 1)]
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
      name = f"birds-{split}.array_record-{index:05d}-of-{shards:05d}"
      with open_writer(root / name, "group_size:1") as writer:
        for example in examples[start:stop]:
          writer.write(example if isinstance(example, bytes) else encode_example(example))
    lengths = [str(stop - start) for start, stop in itertools.pairwise(edges)]
    described.append(
      {
        "name": split,
        "shardLengths": lengths,
        "numBytes": "1",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      }
    )
  info = {"name": "birds", "version": "1.0.0", "fileFormat": file_format, "splits": described}
  (root / "dataset_info.json").write_text(json.dumps(info))
  return root


def tfds_examples(first, count):
  """Returns features of examples as a data set of pictures has them."""
  return [
    {"image": [picture(number)], "label": [number % 3], "file_name": [f"{number}.jpg".encode()]}
    for number in range(first, first + count)
  ]
