"""Looks at processes that a test has started, and waits for what they do."""

import pathlib
import time


def wait_for(is_true, *processes, seconds_max=120):
  """Waits until a condition holds; fails if it takes too long or one of the processes ends."""
  deadline_seconds = time.monotonic() + seconds_max
  while not is_true():
    assert time.monotonic() < deadline_seconds, "what the test waits for has not happened"
    assert all(process.poll() is None for process in processes), "a process has ended too early"
    time.sleep(0.005)


def children(pid):
  """Returns the processes that a process has started and that have not been waited for."""
  files = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
  try:
    return [int(child) for file in files for child in file.read_text().split()]
  except OSError:
    return []


def is_running(pid):
  """Returns whether a process exists and is not merely waiting to be waited for."""
  try:
    return "State:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
  except OSError:
    return False
