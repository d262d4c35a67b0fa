"""The fuzzing harness finds what it is for; a harness that finds nothing would prove nothing."""

import ctypes
import itertools
import random

import pytest

from nfnet.errors import UserError
from tests.fuzzing import mutations, run_bounded


class RawError(UserError):
  """An error whose text is not made printable."""

  def __str__(self):
    return "two\nlines"


def misbehave(content):
  match content:
    case b"error":
      raise IndexError("list index out of range")
    case b"message":
      raise RawError
    case b"hang":
      while True:
        pass
    case b"memory":
      return b"x" * 120_000_000
    case b"crash":
      return ctypes.string_at(0)
    case b"refused":
      raise UserError("it is not what it should be")


@pytest.mark.parametrize("kind", ["error", "message", "hang", "memory", "crash"])
def test_each_kind_is_found_and_the_inputs_after_it_are_run(kind):
  inputs = [b"fine", kind.encode(), b"refused", b"fine", kind.encode()]
  found = run_bounded(misbehave, inputs, seconds_max=0.3, memory_bytes_max=10**8)
  assert [(finding.kind, finding.content) for finding in found] == [(kind, kind.encode())] * 2


def test_each_process_reads_as_many_inputs_as_it_should():
  inputs = [b"fine"] * 5 + [b"error"] + [b"fine"] * 5 + [b"crash", b"error"]
  found = run_bounded(misbehave, inputs, inputs_per_process=2)
  assert [finding.kind for finding in found] == ["error", "crash", "error"]


def test_what_a_reader_may_do_is_no_finding():
  assert run_bounded(misbehave, [b"fine", b"refused"] * 10) == []


def test_mutations_differ_from_the_seed_and_are_the_same_for_a_seed():
  seed = b'{"a": [1, 2, 3], "b": "text"}' * 3
  first = list(itertools.islice(mutations(seed, random.Random(1)), 200))
  assert first == list(itertools.islice(mutations([seed], random.Random(1)), 200))
  assert len(set(first)) > 150
  assert sum(content == seed for content in first) < 20
  assert any(len(content) > 1000 for content in first)
  assert all(
    mutation is not None for mutation in itertools.islice(mutations(b"", random.Random(0)), 50)
  )
