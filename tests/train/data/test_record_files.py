import errno
import hashlib
import os

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet.errors import UserError
from tests.train.data import image_files
from train.data import record_files
from train.data.manifest import Manifest, Split, describe_file, load_manifest


def verify(folder):
  return list(record_files.verify(folder, load_manifest(folder)))


@given(
  st.builds(
    record_files.Record,
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(0, 2**31 - 1), min_size=1).map(tuple),
    st.binary(),
  )
)
def test_records_come_back_as_they_were(record):
  assert record_files.decode_record(record_files.encode_record(record)) == record


@given(st.binary(max_size=60))
def test_bytes_that_are_no_record_raise_the_one_error(stored):
  with pytest.raises(record_files.BadRecordError):
    record_files.decode_record(stored)


@pytest.mark.parametrize(
  "fields",
  [
    {"id": 0, "labels": [], "image": b""},
    {"id": 0, "labels": ["ant"], "image": b""},
    {"id": 0, "labels": [1], "image": "text"},
    {"id": 0, "image": b""},
    [0, [1], b""],
  ],
)
def test_msgpack_of_something_else_raises_the_one_error(fields):
  with pytest.raises(record_files.BadRecordError):
    record_files.decode_record(msgpack.packb(fields))


def test_a_record_cut_short_raises_the_one_error():
  stored = record_files.encode_record(record_files.Record(3, (1, 2), b"image"))
  for length_bytes in range(len(stored)):
    with pytest.raises(record_files.BadRecordError):
      record_files.decode_record(stored[:length_bytes])


def test_a_whole_data_set_verifies(folder):
  assert [shard.records for shard in verify(folder)] == [10, 4]


def test_missing_file(folder):
  (folder / "train.array_record").unlink()
  with pytest.raises(UserError, match=r"train\.array_record .*missing"):
    verify(folder)


def test_file_cut_short(folder):
  path = folder / "train.array_record"
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=r"train\.array_record has 131071 bytes where .* 131072"):
    verify(folder)


def test_file_that_cannot_be_read_to_its_end(folder, monkeypatch):
  def fail(*unused):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(hashlib, "file_digest", fail)
  with pytest.raises(UserError, match=r"train\.array_record cannot be read: Input/output error"):
    verify(folder)


def test_file_with_one_bit_changed(folder):
  path = folder / "train.array_record"
  content = bytearray(path.read_bytes())
  content[1000] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match=r"train\.array_record has SHA-256"):
    verify(folder)


def test_file_with_another_number_of_records(folder):
  def edit(fields):
    fields["splits"]["train"]["records"] = 9
    fields["splits"]["train"]["shards"][0]["records"] = 9

  image_files.edit_manifest(folder, edit)
  with pytest.raises(UserError, match=r"train\.array_record has 10 records where .* 9"):
    verify(folder)


def test_records_of_another_split(folder):
  image_files.edit_manifest(
    folder,
    lambda fields: fields["splits"].update(
      train={
        "records": 14,
        "shards": [fields["splits"][name]["shards"][0] for name in ("train", "validation")],
      }
    ),
  )
  with pytest.raises(UserError, match="record 0 has id 0, not 10"):
    verify(folder)


def test_labels_beyond_the_classes(folder):
  image_files.edit_manifest(folder, lambda fields: fields.update(class_names=["ant", "bee"]))
  with pytest.raises(UserError, match=r"labels \[2\]; there are 2 classes"):
    verify(folder)


@pytest.mark.parametrize("content", [b"", b"\xff", b"\x93\0\0\0", b"\x91" * 5000])
def test_records_that_are_none_in_a_file_that_is_whole(tmp_path, content):
  """Whoever wrote the file wrote its digest, too."""
  path = tmp_path / "train.array_record"
  with record_files.open_writer(path) as writer:
    writer.write(content)
  split = Split(records=1, record_files=(describe_file(tmp_path, path.name, 1),))
  manifest = Manifest(class_names=("a",), labels_per_record_max=1, splits={"train": split})
  with pytest.raises(UserError, match=r"train\.array_record: record 0 is not"):
    list(record_files.verify(tmp_path, manifest))
