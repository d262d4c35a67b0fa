import pathlib
import time
from typing import NamedTuple

import pytest

from tests.train import runs
from train.run.records.goodput import COMPILE, read_goodput


class Uninterrupted(NamedTuple):
  """A run of `runs.FIELDS` that nothing interrupted; all of its programs are in the cache.

  Attributes:
    workdir: its folder.
    final_sha256: see `runs.final_sha256`.
    seconds: what such a run takes when it finds its programs compiled, roughly.
  """

  workdir: pathlib.Path
  final_sha256: tuple[str, str]
  seconds: float


@pytest.fixture(scope="session")
def uninterrupted(digits, tmp_path_factory):
  folder = tmp_path_factory.mktemp("uninterrupted")
  workdir = folder / "run"
  started_seconds = time.monotonic()
  assert runs.start(workdir, digits, folder / "log").wait(timeout=500) == 0
  seconds = time.monotonic() - started_seconds
  compile_seconds = read_goodput(str(workdir)).seconds[COMPILE]
  return Uninterrupted(workdir, runs.final_sha256(workdir), seconds - compile_seconds)
