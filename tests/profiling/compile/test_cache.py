"""What a result's key depends on, on a copy of the source tree."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from nfnet.errors import UserError
from profiling.compile.cache import cache_key, installed_versions, run_worker
from tests.file_modes import group_umask, modes_beside_group_umask
from tests.repository import ROOT

STEP = "profiling.compile.step_worker"
OPS = "profiling.compile.op_worker"
REQUEST = {"experiment": {"seed": 0}, "topology": "v4:2x2x1"}
ECHO = "tests.profiling.compile.echo_worker"


def key(root, module=STEP, *, request=REQUEST, versions=None, dumps=False):
  return cache_key(module, request, versions or {"jax": "1"}, dumps=dumps, root=root)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  root = tmp_path_factory.mktemp("tree")
  ignored = shutil.ignore_patterns("__pycache__", "results", "demo_data", "small_study")
  for package in ("kernels", "nfnet", "train", "profiling"):
    shutil.copytree(ROOT / package, root / package, ignore=ignored)
  (root / "README.md").write_text("# A repository\n")
  return root


@pytest.fixture
def edit(tree):
  """A function that appends an empty line to a file of the tree, until the test is over."""
  before = {}

  def append(name):
    path = tree / name
    before.setdefault(path, path.read_bytes())
    path.write_bytes(before[path] + b"\n")

  yield append
  for path, content in before.items():
    path.write_bytes(content)


@pytest.mark.parametrize(
  "name",
  [
    "kernels/__init__.py",
    "kernels/sgd_agc/tiles.json",
    "nfnet/model.py",
    "profiling/compile/request.py",
    "profiling/compile/step_worker.py",
    "profiling/compile/topology.py",
    "profiling/compile/worker.py",
    "profiling/compiler_text/chips.py",
    "profiling/compiler_text/kernel_dumps.py",
    "train/__init__.py",
    "train/config/experiment.py",
    "train/step/mixing.py",
    "train/step/schedule.py",
    "train/step/sharding/batch.py",
  ],
)
def test_what_a_step_is_compiled_from_changes_its_key(name, tree, edit):
  before = key(tree)
  edit(name)
  assert key(tree) != before


@pytest.mark.parametrize(
  "name",
  [
    "README.md",
    "profiling/step.py",
    "profiling/compile/op_shapes.py",
    "profiling/compiler_text/bundle_cycles.py",
    "profiling/compiler_text/hlo_cycles.py",
    "profiling/compiler_text/kernel_profiles.py",
    "profiling/compiler_text/unit_utilization.py",
    "profiling/estimate/step_time.py",
    "train/data/batches.py",
    "train/launch/xpk.py",
    "train/run/loop.py",
    "train/scaling/analysis_text.py",
  ],
)
def test_what_a_step_is_not_compiled_from_does_not(name, tree, edit):
  before = key(tree)
  edit(name)
  assert key(tree) == before


def test_each_worker_has_the_source_of_its_own(tree, edit):
  before = key(tree, OPS)
  edit("train/step/mixing.py")
  assert key(tree, OPS) == before
  edit("profiling/compile/op_shapes.py")
  assert key(tree, OPS) != before


def test_the_source_is_that_of_the_tree_that_the_process_runs_in(tree, edit):
  program = (
    "from profiling.compile.cache import cache_key\n"
    f"print(cache_key({STEP!r}, {REQUEST!r}, {{'jax': '1'}}, dumps=False))"
  )

  def in_the_tree():
    return subprocess.run(
      [sys.executable, "-c", program],
      cwd=tree,
      env={**os.environ, "PYTHONPATH": str(tree)},
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  before = in_the_tree()
  assert before == key(tree)
  edit("profiling/compiler_text/chips.py")
  assert in_the_tree() == key(tree) != before


def test_request_versions_and_flags_are_part_of_the_key(tree, monkeypatch):
  keys = [
    key(tree),
    key(tree, OPS),
    key(tree, request={**REQUEST, "topology": "v4:2x2x2"}),
    key(tree, versions={"jax": "2"}),
    key(tree, dumps=True),
  ]
  for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
    with monkeypatch.context() as context:
      context.setenv(name, "--xla_something=1")
      keys.append(key(tree))
  assert len(set(keys)) == len(keys)
  assert key(tree) == keys[0]


def test_a_worker_runs_once_for_each_request(tmp_path):
  def run(number):
    folder, _ = run_worker(ECHO, {"number": number}, what="echo", dumps=False, cache=tmp_path)
    return folder, json.loads((folder / "result.json").read_text())

  with group_umask():
    folder, first = run(1)
  assert modes_beside_group_umask(folder) == {}
  assert first["request"] == {"number": 1}
  assert "peak_memory_bytes" in first
  # Another process would have another number.
  assert run(1) == (folder, first)
  other_folder, other = run(2)
  assert other["request"] == {"number": 2}
  assert sorted(tmp_path.iterdir()) == sorted([folder, other_folder])


def test_a_missing_compiler_is_reported():
  with pytest.raises(UserError, match=r"no_such_package is not installed.*pip install"):
    installed_versions(("jax", "no_such_package"))
