"""Mutated record files and idx files, and records, end in the project's own errors."""

import gzip
import random

import pytest

from nfnet.errors import UserError
from tests import fuzzing
from tests.train.data import image_files
from train.data import record_files
from train.data.examples import Decoder
from train.data.manifest import Manifest, Split, describe_file
from train.data.record_reader import RecordReader
from train.data.sources import idx_files

FEW = 50
pytestmark = pytest.mark.parametrize(
  "count", [FEW, pytest.param(10_000, marks=pytest.mark.slow)], ids=["few", "many"]
)


def check(read, seeds, count):
  mutations = fuzzing.mutations(seeds, random.Random(0))
  findings = fuzzing.run_bounded(read, [next(mutations) for _ in range(count)])
  assert not findings, fuzzing.describe(findings)


def test_records(count):
  def read(content):
    try:
      record_files.decode_record(content)
    except record_files.BadRecordError as error:
      raise UserError(str(error)) from error

  record = record_files.Record(3, (1, 2), image_files.TEN_IMAGES[0][0])
  check(read, record_files.encode_record(record), count)


@pytest.mark.parametrize("options", ["group_size:1,uncompressed", "group_size:4,brotli:5"])
def test_record_files(tmp_path, count, options):
  path = tmp_path / "a.array_record"
  with record_files.open_writer(path, options) as writer:
    for index, (image, labels) in enumerate(image_files.TEN_IMAGES):
      writer.write(record_files.encode_record(record_files.Record(index, labels, image)))
  # The file is filled up with zeros to 64 KiB, which no mutation should be spent on.
  whole = path.read_bytes()
  used = whole.rstrip(b"\0")

  def read(content):
    path.write_bytes(content if len(content) > len(used) else content + whole[len(content) :])
    described = describe_file(tmp_path, path.name, 10)
    split = Split(records=10, record_files=(described,))
    manifest = Manifest(
      class_names=image_files.CLASS_NAMES, labels_per_record_max=1, splits={"train": split}
    )
    for in_memory_bytes_max in (0, 2**30):
      decoder = Decoder(RecordReader(tmp_path, split, in_memory_bytes_max), manifest)
      for index in range(10):
        # It catches what makes an example black in training.
        decoder.describe_bad(index)
    list(record_files.verify(tmp_path, manifest))

  check(read, [used, whole[:65536], whole], count)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files(tmp_path, count, ending):
  folder = image_files.write_idx_source(tmp_path / "idx", ending)
  (images,) = folder.glob("train-images*")
  (labels,) = folder.glob("train-labels*")
  whole = {path: path.read_bytes() for path in (images, labels)}

  def read(content):
    for path in (images, labels):
      path.write_bytes(content)
      try:
        source = idx_files.read_idx_source(folder)
        for image in source.splits[idx_files.TRAIN][:3]:
          image.read()
      finally:
        path.write_bytes(whole[path])

  seeds = list(whole.values())
  if ending:
    # Mutated before they are compressed.
    plain = fuzzing.mutations([gzip.decompress(one) for one in seeds], random.Random(1))
    seeds += [gzip.compress(next(plain)) for _ in range(count)]
  check(read, seeds, count)
