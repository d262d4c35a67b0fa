"""Real runs that find what an earlier run has compiled."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from nfnet.errors import UserError
from nfnet.weights.checkpoint_reader import read_checkpoint
from tests.quick_compilation import XLA_FLAGS
from tests.repository import ROOT
from tests.train.runs import free_port
from train.run.compilation_cache import use_compilation_cache

STEPS = 4
CHECKPOINT = 2
FIELDS = {
  "schedule.train_steps": STEPS,
  "schedule.checkpoint_every_steps": CHECKPOINT,
  "schedule.evaluate_every_steps": "none",
  "schedule.log_every_steps": 1,
  "optimizer.warmup_steps": 1,
  "data.batch_size": 16,
}
# Runs train.pretrain, then prints how often JAX has found a program in the cache, and how often it
# has written one.
COUNTING = """
import collections, json, runpy, sys
import jax
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.split("/")[-1]]))
sys.argv[0] = "train.pretrain"
try:
  runpy.run_module("train.pretrain", run_name="__main__", alter_sys=True)
finally:
  print(json.dumps([counts["cache_hits"], counts["cache_misses"]]))
"""


def start(workdir, data, *arguments):
  environment = dict(os.environ, XLA_FLAGS=XLA_FLAGS)
  # The folder that the tests share would be found without a flag.
  environment.pop("JAX_COMPILATION_CACHE_DIR")
  # A fast machine compiles this network in less than the second from which on JAX keeps programs.
  environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  fields = [f"--config.{field}={x}" for field, x in {**FIELDS, "data.path": data}.items()]
  return subprocess.Popen(
    [
      *(sys.executable, "-c", COUNTING, "--config=tests/train/small_network.py"),
      *(f"--workdir={workdir}", *fields, *arguments),
    ],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  """Returns the numbers of programs found and written, and stderr."""
  output, errors = process.communicate(timeout=500)
  assert process.returncode == 0, errors
  found, written = json.loads(output.splitlines()[-1])
  return found, written, errors


def assert_equal_to_the_bit(workdir, expected):
  for prefer_ema in (False, True):
    ours, theirs = (
      read_checkpoint(str(one), prefer_ema=prefer_ema)[0] for one in (workdir, expected)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def programs(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def first(digits, tmp_path_factory):
  """Returns a workdir and the cache that its run has filled."""
  folder = tmp_path_factory.mktemp("with")
  found, written, errors = finish(
    start(folder / "run", digits, f"--compilation_cache={folder / 'new' / 'cache'}")
  )
  assert found == 0
  assert written > 0
  assert errors == ""
  return folder / "run", folder / "new" / "cache"


def test_the_first_start_compiles_each_step_once(first):
  steps = [name for name in programs(first[1]) if name.startswith("jit_step_on_device")]
  assert len(steps) == 2  # training, evaluation


def test_a_restart_compiles_nothing_that_the_first_start_compiled(first, digits, tmp_path):
  workdir, cache = tmp_path / "run", tmp_path / "cache"
  shutil.copytree(first[0], workdir)
  shutil.copytree(first[1], cache)
  shutil.rmtree(workdir / "checkpoints" / str(STEPS))
  found, _, errors = finish(start(workdir, digits, f"--compilation_cache={cache}"))
  assert found > 0
  # Reading a checkpoint may need small programs of its own; neither step is compiled anew.
  new = set(programs(cache)) - set(programs(first[1]))
  assert not [name for name in new if "step" in name]
  assert errors == ""
  # The first start found nothing, so its results are those of programs that were just compiled.
  assert_equal_to_the_bit(workdir, first[0])


@pytest.mark.slow
def test_without_the_flag_nothing_is_kept_and_results_are_the_same(first, digits, tmp_path):
  found, written, _ = finish(start(tmp_path / "run", digits))
  assert (found, written) == (0, 0)
  assert_equal_to_the_bit(tmp_path / "run", first[0])


def test_without_the_flag_nothing_is_set():
  flags.FLAGS.mark_as_parsed()
  before = jax.config.jax_compilation_cache_dir
  use_compilation_cache()
  assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.slow
def test_programs_cut_short_are_compiled_anew(first, digits, tmp_path):
  workdir, cache = tmp_path / "run", tmp_path / "cache"
  shutil.copytree(first[1], cache)
  cut = [path for path in cache.iterdir() if path.name.startswith("jit_step_on_device")]
  for path in cut:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  found, _, errors = finish(start(workdir, digits, f"--compilation_cache={cache}"))
  assert found == len(programs(cache)) - len(cut)
  assert "Error reading persistent compilation cache entry for 'jit_step_on_device'" in errors
  assert_equal_to_the_bit(workdir, first[0])


@pytest.mark.slow
def test_processes_that_start_together_share_a_folder(digits, tmp_path):
  workdirs = [tmp_path / "first", tmp_path / "second"]
  results = []
  for workdir in workdirs:
    who = [f"--coordinator=localhost:{free_port()}", "--process_count=2"]
    processes = [
      start(
        *(workdir, digits, f"--compilation_cache={tmp_path / 'cache'}"),
        *(*who, f"--process_index={i}"),
      )
      for i in range(2)
    ]
    results.append([finish(process) for process in processes])
  (first, second), (first_again, second_again) = results
  # One of them writes. The other one's keys are its own, as both are on CPUs.
  assert first[:2] == (0, len(programs(tmp_path / "cache")))
  assert first_again[:2] == (first[1], 0)
  assert second[:2] == second_again[:2] == (0, 0)
  assert not any("compilation cache" in errors for result in results for *_, errors in result)
  assert_equal_to_the_bit(*workdirs)


@pytest.mark.parametrize(
  ("folder", "message"),
  [
    ("gs://bucket/cache", "gcsfuse --implicit-dirs bucket DIR"),
    (__file__, "is a file; give the path of a folder"),
  ],
)
def test_a_folder_that_cannot_be_is_one_line(folder, message):
  flags.FLAGS.mark_as_parsed()
  with pytest.raises(UserError) as error, flagsaver.as_parsed(compilation_cache=folder):
    use_compilation_cache()
  assert f"--compilation_cache={folder}" in str(error.value)
  assert message in str(error.value)
  assert "\n" not in str(error.value)
