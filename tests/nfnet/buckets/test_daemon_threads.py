import threading

import pytest

from nfnet.buckets.daemon_threads import map_unordered


def test_every_argument_is_used_once():
  assert sorted(map_unordered(lambda x: x * x, range(20), 3)) == [x * x for x in range(20)]
  assert list(map_unordered(lambda x: x, [], 3)) == []


def test_an_error_is_raised_without_waiting_for_other_calls():
  release, calls = threading.Event(), []

  def call(argument):
    calls.append(argument)
    if argument == "fails":
      raise OSError("reason")
    release.wait(10)

  with pytest.raises(OSError, match="reason"):
    list(map_unordered(call, ["hangs", "fails", *range(9)], 2))
  assert not release.is_set()
  assert all(thread.daemon for thread in threading.enumerate() if thread.name == "bucket")
  release.set()
  for thread in threading.enumerate():
    if thread.name == "bucket":
      thread.join(10)
  # The thread that raised the error may have begun one more.
  assert len(calls) <= 3
