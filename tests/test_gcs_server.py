"""The server of these tests answers as Google's own does (googleapis/storage-testbench).

Google's is a server for the tests of its client libraries. Start it, and name its address:

    gunicorn --bind=127.0.0.1:9000 --threads=10 "testbench:run()"
    STORAGE_TESTBENCH=http://127.0.0.1:9000 pytest tests/test_gcs_server.py
"""

import json
import os
import subprocess
import sys
import urllib.request
import uuid

import pytest

from nfnet.buckets import objects
from tests import gcs_server
from tests.repository import ROOT

BUCKET = f"bucket-{uuid.uuid4().hex}"
# More than this project's server puts on a page, and than Google's does.
MANY = 1_100

EXPECTED = {
  "content and generation of a new object": ["one", 0],
  "a new object where there is one": "FileExistsError",
  "of a new object where there is none": "written",
  "in place of the right generation": "written",
  "in place of an older generation": "FileExistsError",
  "content after these": "two",
  "deleting an older generation": "two",
  "deleting the right generation": "FileNotFoundError",
  "deleting what is missing": None,
  "reading what is missing": "FileNotFoundError",
  "pieces of what is missing": "FileNotFoundError",
  "reading, listing and writing a bucket that is missing": [
    "FileNotFoundError",
    [],
    "FileNotFoundError",
  ],
  "pieces of 0 to 25 bytes": [True] * 12,
  "names with other characters": [" a", "b#?&=+%2F", "c/d e", "ü€"],
  "names of a folder": ["1", "2/3"],
  "which exist": [True, False, False],
  "names on all pages": MANY,
  "names after the folder was deleted": ["folder.x", "folder0"],
}


@pytest.fixture(params=["own", "Google's"])
def address(request):
  """Yields the address of a server."""
  if request.param == "own":
    with gcs_server.serving() as (address, storage):
      storage.buckets.add(BUCKET)
      yield address
  elif "STORAGE_TESTBENCH" in os.environ:
    address = os.environ["STORAGE_TESTBENCH"]
    _make_bucket(address)
    yield address
  else:
    pytest.skip("STORAGE_TESTBENCH is not set")


def test_a_server_answers_as_expected(address):
  # TensorStore asks for the address once in a process.
  done = subprocess.run(
    [sys.executable, "-m", "tests.test_gcs_server", BUCKET],
    env={**os.environ, **gcs_server.environment(address)},
    cwd=ROOT,
    stdout=subprocess.PIPE,
    check=True,
  )
  assert json.loads(done.stdout) == EXPECTED


def _make_bucket(address):
  request = urllib.request.Request(
    f"{address}/storage/v1/b?project=p",
    json.dumps({"name": BUCKET}).encode(),
    {"Content-Type": "application/json"},
  )
  with urllib.request.urlopen(request):
    pass


def _exchange(bucket):
  """Returns what the bucket's server answers to all kinds of requests."""
  answers = {}
  first = objects.write(bucket, "a", b"one", if_generation=objects.NO_OBJECT)
  content, generation = objects.read(bucket, "a")
  answers["content and generation of a new object"] = [content.decode(), generation != first]
  answers["a new object where there is one"] = _write(bucket, "a", "x", objects.NO_OBJECT)
  answers["of a new object where there is none"] = _write(bucket, "b", "x", objects.NO_OBJECT)
  answers["in place of the right generation"] = _write(bucket, "a", "two", first)
  answers["in place of an older generation"] = _write(bucket, "a", "x", first)
  answers["content after these"] = _read(bucket, "a")
  objects.delete(bucket, "a", if_generation=first)
  answers["deleting an older generation"] = _read(bucket, "a")
  objects.delete(bucket, "a", if_generation=objects.read(bucket, "a")[1])
  answers["deleting the right generation"] = _read(bucket, "a")
  answers["deleting what is missing"] = objects.delete(bucket, "a")
  answers["reading what is missing"] = _read(bucket, "a")
  answers["pieces of what is missing"] = _error(lambda: list(objects.read_pieces(bucket, "a")))
  answers["reading, listing and writing a bucket that is missing"] = [
    _read(f"{bucket}-not", "a"),
    objects.names(f"{bucket}-not", "a"),
    _write(f"{bucket}-not", "a", "x", None),
  ]
  objects.READ_BYTES = 10
  answers["pieces of 0 to 25 bytes"] = []
  for size in (0, 1, 10, 11, 20, 25):
    objects.write(bucket, "a", bytes(range(size)))
    for start in (0, 5):
      pieces = b"".join(objects.read_pieces(bucket, "a", start))
      answers["pieces of 0 to 25 bytes"].append(pieces == bytes(range(size))[start:])
  objects.delete_all(bucket, "")
  for name in (" a", "b#?&=+%2F", "c/d e", "ü€"):
    objects.write(bucket, name, name.encode())
    assert objects.read(bucket, name)[0] == name.encode()
  answers["names with other characters"] = objects.names(bucket, "")
  objects.delete_all(bucket, "")
  for name in ("folder/1", "folder/2/3", "folder.x", "folder0"):
    objects.write(bucket, name, b"")
  answers["names of a folder"] = objects.names(bucket, "folder")
  answers["which exist"] = [objects.exists(bucket, name) for name in ("folder/1", "folder", "fold")]
  for index in range(MANY):
    objects.write(bucket, f"folder/many/{index}", b"")
  answers["names on all pages"] = len(objects.names(bucket, "folder/many"))
  objects.delete_all(bucket, "folder")
  answers["names after the folder was deleted"] = objects.names(bucket, "")
  return answers


def _write(bucket, name, content, generation):
  return _error(lambda: objects.write(bucket, name, content.encode(), if_generation=generation))


def _read(bucket, name):
  try:
    return objects.read(bucket, name)[0].decode()
  except OSError as error:
    return type(error).__name__


def _error(use):
  try:
    use()
  except OSError as error:
    return type(error).__name__
  return "written"


if __name__ == "__main__":
  print(json.dumps(_exchange(sys.argv[1])))
