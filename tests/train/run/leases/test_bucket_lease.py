import json
import os
import threading
import time

import pytest

from nfnet.errors import InUseError, UserError
from train.run.leases import bucket_lease, held
from train.run.leases.workdir_lease import lease_on

ELSEWHERE = {"process": 7, "host": "other", "since": "noon", "place": "another kernel", "token": 5}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(bucket_lease, "HEARTBEAT_SECONDS", 0.05)
  monkeypatch.setattr(bucket_lease, "SILENT_SECONDS_MAX", 0.4)
  monkeypatch.setattr(bucket_lease, "CONFIRMED_SECONDS_MAX", 0.2)
  monkeypatch.setattr(bucket_lease, "_POLL_SECONDS", 0.02)


@pytest.fixture
def workdir(gcs):
  return f"{gcs.url}/runs/f0"


def write_lease(gcs, **holder):
  gcs.put("runs/f0/lease.json", json.dumps(holder).encode())


def holder_of(gcs):
  return json.loads(gcs.read("runs/f0/lease.json"))


def test_it_is_held_while_the_context_lasts(gcs, workdir):
  with lease_on(workdir):
    generations = set()
    while len(generations) < 3:
      generations.add(gcs.storage.objects[gcs.name, "runs/f0/lease.json"].generation)
      time.sleep(0.01)
    assert holder_of(gcs)["process"] == os.getpid()
    held.check_lease(workdir)
    held.check_lease(f"{workdir}/checkpoints")
    with pytest.raises(InUseError, match=f"is in use by process {os.getpid()} on host"):
      bucket_lease.taken(workdir).__enter__()
  assert gcs.names() == []
  held.check_lease(workdir)


def test_a_silent_holder_elsewhere_is_waited_for(gcs, workdir, capsys):
  write_lease(gcs, **ELSEWHERE)
  began_seconds = time.monotonic()
  with lease_on(workdir):
    assert time.monotonic() - began_seconds > 0.4
    assert holder_of(gcs)["host"] != "other"
  assert "process 7 on host other (since noon), or was until it died" in capsys.readouterr().err


def test_a_holder_elsewhere_that_ends_meanwhile_makes_way(gcs, workdir):
  write_lease(gcs, **ELSEWHERE)
  threading.Timer(0.1, gcs.remove, ["runs/f0/lease.json"]).start()
  with lease_on(workdir):
    pass


def test_a_living_holder_elsewhere_is_in_the_way(gcs, workdir):
  write_lease(gcs, **ELSEWHERE)
  threading.Timer(0.1, write_lease, [gcs], ELSEWHERE).start()
  with pytest.raises(InUseError, match="in use by process 7 on host other"), lease_on(workdir):
    pass


@pytest.mark.parametrize("began", ["12345", None])
def test_a_dead_process_of_this_machine_is_not_waited_for(gcs, workdir, began):
  # The number of this process, which began at another time, stands for a number used again.
  process = os.getpid() if began else 2**22 + 1
  place = bucket_lease._place()
  write_lease(gcs, process=process, place=place, began=began or "1", token=5)
  began_seconds = time.monotonic()
  with lease_on(workdir):
    assert time.monotonic() - began_seconds < 0.3


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (json.dumps(ELSEWHERE).encode(), "was taken over by process 7 on host other"),
    (b"{}", "has been emptied or replaced"),
    (None, "has been emptied or replaced"),
  ],
)
def test_a_lost_lease_is_noticed_and_left_alone(gcs, workdir, content, reason):
  with lease_on(workdir):
    if content is None:
      gcs.remove("runs/f0/lease.json")
    else:
      gcs.put("runs/f0/lease.json", content)
    time.sleep(0.3)
    for _ in range(2):
      with pytest.raises(UserError, match=f"^workdir {workdir!r} {reason}"):
        held.check_lease(workdir)
  assert gcs.names() == ([] if content is None else ["runs/f0/lease.json"])


def test_other_processes_of_the_run_notice_too(gcs, workdir):
  write_lease(gcs, **ELSEWHERE)
  bucket_lease.hold(workdir, 5)
  try:
    held.check_lease(workdir)
    write_lease(gcs, **{**ELSEWHERE, "token": 6})
    # It was confirmed just now.
    held.check_lease(workdir)
    time.sleep(0.2)
    with pytest.raises(UserError, match="was taken over"):
      held.check_lease(workdir)
  finally:
    held.release(workdir)
  assert holder_of(gcs)["token"] == 6


def test_a_repeated_heartbeat_does_not_lose_the_lease(gcs, workdir):
  with lease_on(workdir):
    # What a write leaves whose answer was lost.
    gcs.put("runs/f0/lease.json", gcs.read("runs/f0/lease.json"))
    time.sleep(0.3)
    held.check_lease(workdir)
  assert gcs.names() == []


def test_a_bucket_that_cannot_be_written_is_one_line(gcs, workdir):
  gcs.refuse(403, "POST")
  with pytest.raises(UserError, match="cannot be written: PERMISSION_DENIED"), lease_on(workdir):
    pass
