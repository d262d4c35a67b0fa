import contextlib
import pathlib
import time

import pytest

from nfnet.errors import UserError
from train.run.leases import held
from train.run.records import staging
from train.run.records.staging import books_of, books_to_read


@pytest.fixture
def workdir(gcs, tmp_path, monkeypatch):
  monkeypatch.setenv("NFNETS_CACHE", str(tmp_path / "cache"))
  return f"{gcs.url}/run"


def fill(gcs):
  for name in (
    *("metrics.jsonl", "goodput.jsonl", "ids/order.json", "ids/00000.bin", "ids/00001.bin"),
    *("records_damaged/metrics.jsonl", "records_damaged/ids/00001.bin", "run.json", "lease.json"),
    *("tensorboard/events", "plots/loss.png", "checkpoints/3/a", "checkpoints_damaged/3/a"),
  ):
    gcs.put(f"run/{name}", name.encode())


def names_in(folder):
  folder = pathlib.Path(folder)
  return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_books_of_a_folder_are_in_it(tmp_path):
  with books_of(str(tmp_path)) as books:
    assert books.folder == str(tmp_path)
    books.upload()
  with books_to_read(str(tmp_path)) as folder:
    assert folder == str(tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("process", "expected"),
  [
    (
      0,
      {"metrics.jsonl", "goodput.jsonl", "ids/order.json", "ids/00000.bin"}
      | {"records_damaged/metrics.jsonl"},
    ),
    (1, {"ids/00001.bin", "records_damaged/ids/00001.bin"}),
  ],
)
def test_a_process_begins_with_the_files_that_it_writes(
  gcs, workdir, monkeypatch, process, expected
):
  fill(gcs)
  monkeypatch.setattr(staging.jax, "process_index", lambda: process)
  before = dict(gcs.storage.objects)
  with books_of(workdir) as books:
    assert names_in(books.folder) == expected
  # Nothing has changed, so nothing was written.
  assert gcs.storage.objects == before
  assert not pathlib.Path(books.folder).exists()


def test_what_has_changed_is_uploaded_as_a_whole(gcs, workdir, tmp_path):
  gcs.put("run/metrics.jsonl", b"1")
  with books_of(workdir) as books:
    folder = pathlib.Path(books.folder)
    with (folder / "metrics.jsonl").open("ab") as file:
      file.write(b"2")
    (folder / "ids").mkdir()
    (folder / "ids/00000.bin").write_bytes(b"3")
    (folder / "metrics.tmp").write_bytes(b"4")
    assert gcs.read("run/metrics.jsonl") == b"1"
    books.upload()
    assert gcs.read("run/metrics.jsonl") == b"12"
    assert gcs.read("run/ids/00000.bin") == b"3"
    assert gcs.names() == ["run/ids/00000.bin", "run/metrics.jsonl"]
    (folder / "metrics.tmp").replace(folder / "metrics.jsonl")
  assert gcs.read("run/metrics.jsonl") == b"4"
  # As on another machine.
  assert not names_in(tmp_path / "cache")
  with books_to_read(workdir) as folder:
    assert names_in(folder) == {"ids/00000.bin", "metrics.jsonl"}


def test_the_bucket_shows_how_a_run_is_going(gcs, workdir, monkeypatch):
  monkeypatch.setattr(staging, "UPLOAD_SECONDS", 0.02)
  with books_of(workdir) as books:
    pathlib.Path(books.folder, "metrics.jsonl").write_bytes(b"1")
    deadline_seconds = time.monotonic() + 10
    while not gcs.names() and time.monotonic() < deadline_seconds:
      time.sleep(0.01)
    assert gcs.read("run/metrics.jsonl") == b"1"


def test_an_error_in_the_run_loses_no_record(gcs, workdir):
  with contextlib.suppress(ZeroDivisionError), books_of(workdir) as books:
    pathlib.Path(books.folder, "metrics.jsonl").write_bytes(b"1")
    raise ZeroDivisionError
  assert gcs.read("run/metrics.jsonl") == b"1"


def test_a_bucket_that_cannot_be_written_does_not_stop_the_run(gcs, workdir, caplog):
  with books_of(workdir) as books:
    pathlib.Path(books.folder, "metrics.jsonl").write_bytes(b"1")
    gcs.refuse(403, "POST")
    books.upload()
  assert "metrics.jsonl cannot be written: PERMISSION_DENIED" in caplog.text
  assert f"{workdir} lacks the newest records; they are in {books.folder}" in caplog.text
  assert names_in(books.folder) == {"metrics.jsonl"}
  gcs.refuse(200)
  gcs.storage.refuse = lambda *unused: None
  # What the bucket lacks is not continued, because checkpoints need only what it has.
  with books_of(workdir) as books:
    assert not names_in(books.folder)


def test_nothing_is_uploaded_under_a_lost_lease(gcs, workdir):
  def check():
    raise UserError("lost")

  opened = contextlib.ExitStack()
  books = opened.enter_context(books_of(workdir))
  pathlib.Path(books.folder, "metrics.jsonl").write_bytes(b"1")
  held.hold_with(workdir, check)
  for use in (lambda: held.check_lease(books.folder), books.upload, opened.close):
    with pytest.raises(UserError, match="lost"):
      use()
  held.release(workdir)
  assert not gcs.names()


def test_a_workdir_without_records_is_one_line(workdir):
  with (
    pytest.raises(UserError, match="is not a folder; give the workdir of a run"),
    books_to_read(workdir),
  ):
    pass
