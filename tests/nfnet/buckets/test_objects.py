import time

import pytest

from nfnet.buckets import objects


@pytest.fixture
def bucket(gcs):
  return gcs.name


def test_what_is_written_is_read(bucket):
  for name in ("a", "folder/a b#?ü%2F", "empty"):
    content = b"" if name == "empty" else name.encode()
    generation = objects.write(bucket, name, content)
    assert objects.read(bucket, name) == (content, generation)
    assert objects.exists(bucket, name)
  assert not objects.exists(bucket, "folder")
  assert objects.names(bucket, "") == ["a", "empty", "folder/a b#?ü%2F"]
  assert objects.names(bucket, "folder") == ["a b#?ü%2F"]


def test_names_come_from_all_pages_and_from_no_neighbor(gcs):
  expected = sorted(f"{i}" for i in range(50))
  for name in expected:
    gcs.put(f"a/{name}", b"")
  for name in ("a", "a-b/c", "a.b", "a0"):
    gcs.put(name, b"")
  assert objects.names(gcs.name, "a") == expected
  objects.delete_all(gcs.name, "a")
  assert gcs.names() == ["a", "a-b/c", "a.b", "a0"]


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 25])
@pytest.mark.parametrize("start", [0, 5])
def test_pieces_add_up_to_the_object(gcs, monkeypatch, size, start):
  monkeypatch.setattr(objects, "READ_BYTES", 10)
  content = bytes(range(size))
  gcs.put("a", content)
  assert b"".join(objects.read_pieces(gcs.name, "a", start)) == content[start:]


def test_writes_can_depend_on_the_generation(bucket):
  first = objects.write(bucket, "a", b"1", if_generation=objects.NO_OBJECT)
  with pytest.raises(FileExistsError):
    objects.write(bucket, "a", b"2", if_generation=objects.NO_OBJECT)
  second = objects.write(bucket, "a", b"3", if_generation=first)
  with pytest.raises(FileExistsError):
    objects.write(bucket, "a", b"4", if_generation=first)
  objects.delete(bucket, "a", if_generation=first)
  assert objects.read(bucket, "a") == (b"3", second)
  objects.delete(bucket, "a", if_generation=second)
  assert not objects.exists(bucket, "a")


def test_what_is_missing_is_a_missing_file(bucket):
  for read in (objects.read, lambda *name: list(objects.read_pieces(*name))):
    with pytest.raises(FileNotFoundError) as error:
      read(bucket, "a")
    assert error.value.filename == f"gs://{bucket}/a"


def test_writing_to_a_missing_bucket_says_so(bucket):
  with pytest.raises(FileNotFoundError) as error:
    objects.write("no-such-bucket", "a", b"")
  assert error.value.strerror.startswith("there is no bucket no-such-bucket; look at its name")
  assert error.value.filename == "gs://no-such-bucket/a"


@pytest.mark.parametrize("status", [401, 403])
def test_without_permission_the_error_says_how_to_log_in(gcs, status):
  gcs.refuse(status)
  for use in (objects.read, objects.names, lambda *name: objects.write(*name, b"")):
    with pytest.raises(PermissionError, match="gcloud auth application-default login"):
      use(gcs.name, "a")


def test_waiting_for_long_is_told_once(gcs, monkeypatch, capsys):
  gcs.put("a", b"1")
  objects.read(gcs.name, "a")
  assert not capsys.readouterr().err
  monkeypatch.setattr(objects, "PATIENCE_SECONDS", 0.05)
  gcs.storage.refuse = lambda *unused: time.sleep(0.3)
  for _ in range(2):
    assert objects.read(gcs.name, "a")[0] == b"1"
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(
    f"still waiting for gs://{gcs.name} after 0.05 seconds; requests that fail"
  )


def test_a_server_that_is_busy_is_asked_again(gcs):
  gcs.put("a", b"1")
  busy_until = time.monotonic() + 0.2
  gcs.storage.refuse = lambda *unused: 503 if time.monotonic() < busy_until else None
  assert objects.read(gcs.name, "a")[0] == b"1"
