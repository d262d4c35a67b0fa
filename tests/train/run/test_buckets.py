"""Runs whose data and workdir are in a bucket, which die and go on elsewhere."""

import signal

import pytest

from tests.train import runs
from train.audit_data import audit
from train.run.records.metrics import read_metrics

pytestmark = pytest.mark.slow


def start(gcs, log, cache, monkeypatch, **arguments):
  """Starts a run on a machine on which nothing is yet, as a name of a cache has it."""
  monkeypatch.setenv("NFNETS_CACHE", str(cache))
  return runs.start(f"{gcs.url}/run", f"{gcs.url}/data", log, session=True, **arguments)


def kill_at(gcs, process, method, part, count=1):
  """Kills a run when it sends a request for the n-th time, which is not carried out."""
  seen = []

  def kill(asked, address):
    if asked.startswith(method) and part in address:
      seen.append(address)
      if len(seen) == count:
        process.send_signal(signal.SIGKILL)
      if len(seen) >= count:
        return 503
    return None

  gcs.storage.refuse = kill


def assert_same_as(uninterrupted, gcs, folder):
  gcs.download("run", folder)
  assert runs.final_sha256(folder) == uninterrupted.final_sha256
  steps = [one["step"] for one in read_metrics(folder) if one["kind"] == "train"]
  assert steps == list(range(1, runs.STEPS + 1))
  found = audit(f"{gcs.url}/run")
  assert (found.steps, found.unproven_steps, found.blank) == (runs.STEPS, 0, 0)
  assert found.images == runs.STEPS * runs.FIELDS["data.batch_size"]
  return found


def test_a_run_that_is_killed_goes_on_elsewhere_with_the_same_bits(
  gcs, digits, uninterrupted, tmp_path, monkeypatch
):
  gcs.upload(digits, "data")
  deaths = [
    # Before the records of the first checkpoint are there.
    ("POST", "run/ids/00000.bin", 1),
    # The records of step 6 are there, and most of its checkpoint.
    ("POST", "run/checkpoints/6/commit_success.txt", 1),
    # Between the checkpoints of steps 9 and 12.
    ("POST", "run/ids/00000.bin", 3),
    # An old checkpoint has been deleted in part.
    ("DELETE", "run/checkpoints/6/params", 1),
  ]
  for number, (method, part, count) in enumerate(deaths):
    process = start(gcs, tmp_path / "log", tmp_path / f"host{number}", monkeypatch)
    kill_at(gcs, process, method, part, count)
    assert process.wait(timeout=300) == -signal.SIGKILL, (tmp_path / "log").read_text()
    gcs.storage.refuse = lambda *unused: None
    assert "run/lease.json" in gcs.names()
  process = start(gcs, tmp_path / "log", tmp_path / "host", monkeypatch)
  assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()
  assert "run/lease.json" not in gcs.names()
  assert not list((tmp_path / "host/workdirs").iterdir())
  found = assert_same_as(uninterrupted, gcs, tmp_path / "run")
  # The first start has left no record.
  assert found.starts == len(deaths)


def test_sigterm_loses_no_step_and_no_record(gcs, digits, uninterrupted, tmp_path, monkeypatch):
  gcs.upload(digits, "data")
  process = start(gcs, tmp_path / "log", tmp_path / "host0", monkeypatch)

  def terminate(method, address):
    if method == "POST" and "run/checkpoints/6/commit_success.txt" in address:
      process.send_signal(signal.SIGTERM)
    return None

  gcs.storage.refuse = terminate
  assert process.wait(timeout=300) == 143, (tmp_path / "log").read_text()
  gcs.storage.refuse = lambda *unused: None
  assert "run/lease.json" not in gcs.names()
  process = start(gcs, tmp_path / "log", tmp_path / "host1", monkeypatch)
  assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()
  found = assert_same_as(uninterrupted, gcs, tmp_path / "run")
  assert (found.starts, found.repeated_steps) == (2, 0)


def test_two_processes_share_a_workdir_in_a_bucket(gcs, digits, tmp_path, monkeypatch):
  gcs.upload(digits, "data")

  def run_both(**fields):
    port = runs.free_port()
    processes = [
      start(
        gcs,
        tmp_path / f"log{index}",
        tmp_path / f"host{index}",
        monkeypatch,
        flags=[f"--coordinator=localhost:{port}", "--process_count=2", f"--process_index={index}"],
        **fields,
      )
      for index in range(2)
    ]
    codes = [process.wait(timeout=300) for process in processes]
    assert codes == [0, 0], (tmp_path / "log0").read_text() + (tmp_path / "log1").read_text()

  steps = {"schedule.train_steps": 6}
  run_both(**steps)
  assert {"run/ids/00000.bin", "run/ids/00001.bin", "run/metrics.jsonl"} <= set(gcs.names())
  # It restores its last checkpoint.
  run_both(**steps)
  found = audit(f"{gcs.url}/run")
  assert (found.steps, found.images, found.repeated_steps) == (6, 96, 0)
