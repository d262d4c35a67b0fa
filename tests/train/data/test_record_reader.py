import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pytest

from nfnet.errors import UserError
from tests.repository import ROOT
from tests.train.data import image_files
from train.data import record_files, record_reader
from train.data.manifest import load_manifest
from train.data.record_reader import RecordReader


@pytest.mark.parametrize("in_memory_bytes_max", [0, 2**30])
def test_reader_finds_every_record_over_several_files(tmp_path, in_memory_bytes_max):
  manifest = image_files.write_dataset(tmp_path / "data", train=23, files=4)
  reader = RecordReader(tmp_path / "data", manifest.splits["train"], in_memory_bytes_max)
  assert len(reader) == 23
  assert [reader.read(index).id for index in range(23)] == list(range(23))
  assert reader.describe(5) == "record 0 of train-00001-of-00004.array_record"


@pytest.mark.parametrize("in_memory_bytes_max", [0, 2**30])
def test_reader_loses_only_the_damaged_record(folder, in_memory_bytes_max):
  path = folder / "train.array_record"
  content = bytearray(path.read_bytes())
  content[content.index(image_files.TEN_IMAGES[6][0]) + 500] ^= 1
  path.write_bytes(content)
  split = load_manifest(folder).splits["train"]
  reader = RecordReader(folder, split, in_memory_bytes_max)
  with pytest.raises(record_files.BadRecordError, match="hash mismatch"):
    reader.read(6)
  others = [0, 1, 2, 3, 4, 5, 7, 8, 9]
  assert [reader.read(index).id for index in others] == others


def test_reader_refuses_a_file_with_another_number_of_records(folder):
  (folder / "train.array_record").write_bytes((folder / "validation.array_record").read_bytes())
  reader = RecordReader(folder, load_manifest(folder).splits["train"])
  with pytest.raises(UserError, match=r"train\.array_record has 4 records where .* 10"):
    reader.read(0)


def test_many_record_files_need_few_descriptors(tmp_path, monkeypatch):
  manifest = image_files.write_dataset(tmp_path / "data", train=60, files=30)
  monkeypatch.setattr(record_reader, "_OPEN_READERS_MAX", 4)
  reader = RecordReader(tmp_path / "data", manifest.splits["train"], in_memory_bytes_max=0)
  before = len(os.listdir("/proc/self/fd"))
  indices = [int(i) for i in np.random.default_rng(0).permutation(60)]

  def read(indices):
    return [reader.read(index).id for index in indices]

  # Threads that read from a file that is evicted meanwhile go on.
  with concurrent.futures.ThreadPoolExecutor(8) as executor:
    parts = executor.map(read, [indices[i::8] for i in range(8)])
  assert sorted(i for part in parts for i in part) == list(range(60))
  assert len(os.listdir("/proc/self/fd")) <= before + 4


AT_THE_LIMIT = """
import os, resource, sys
from nfnet.errors import UserError
from train.data import record_files
from train.data.manifest import load_manifest
from train.data.record_reader import RecordReader

folder, soft, hard = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
manifest = load_manifest(folder)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
reader = RecordReader(folder, manifest.splits["train"], in_memory_bytes_max=0)
print([reader.read(index).id for index in range(len(reader))] == list(range(60)))
print(len(list(record_files.verify(folder, manifest))))
# Others, such as those of a checkpoint, have taken all descriptors, or all but one.
kept = []
try:
  while True:
    kept.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
  pass
another = RecordReader(folder, manifest.splits["train"], in_memory_bytes_max=0)
for _ in range(2):
  try:
    another.read(0)
  except UserError as error:
    print(error)
  os.close(kept.pop())
"""


@pytest.mark.parametrize(("soft", "hard"), [(24, 200), (24, 24)])
def test_limits_of_open_files_are_raised_and_named(soft, hard, tmp_path):
  image_files.write_dataset(tmp_path / "data", train=60, files=60)
  completed = subprocess.run(
    [sys.executable, "-c", AT_THE_LIMIT, str(tmp_path / "data"), str(soft), str(hard)],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert completed.stderr == ""
  lines = completed.stdout.splitlines()
  assert lines[:2] == ["True", "61"]
  assert len(lines) == 4
  for line in lines[2:]:
    assert line.endswith(
      "train-00000-of-00060.array_record cannot be opened: this process has reached its limit of "
      f"{hard} open files; raise it (as root: ulimit -Hn, or LimitNOFILE of systemd)"
    )
