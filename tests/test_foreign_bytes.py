"""Fuzzes the readers of bytes that somebody else may have made: no hang, no crash, one line.

    python -m pytest -n0 -m slow tests/test_foreign_bytes.py

runs 10,000 mutations for each reader, the default tests 50. What it finds becomes a test of the
reader, beside its other tests.
"""

import contextlib
import itertools
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import safetensors.numpy

from nfnet.foreign_files.json_text import read_json
from nfnet.foreign_files.known_starts import known_mistake
from nfnet.images.decoding import read_image_file
from nfnet.predict import read_inputs
from nfnet.weights.checkpoint_digests import DIGESTS_FILE, find_damage
from nfnet.weights.checkpoint_reader import EXPERIMENT_ITEM, read_metadata
from nfnet.weights.haiku_pickle import read_haiku
from nfnet.weights.safetensors_file import read_safetensors
from profiling.input_pipeline import step_speed
from tests.fuzzing import describe, mutations, run_bounded
from tests.repository import ROOT
from train.config.files import load_experiment
from train.config.json_conversion import from_json, to_json
from train.config.overrides import override
from train.data.manifest import (
  Manifest,
  RecordFile,
  Split,
  describe_file,
  load_manifest,
  save_manifest,
)
from train.data.record_files import open_record_file
from train.data.sources import idx_files, label_table
from train.data.sources.source import Options
from train.data.sources.tars import webdataset
from train.run.records import id_log
from train.scaling.run_table import read_runs
from train.sweep import worker
from train.sweep.plan import load_plan

TREE = {
  "net/~/conv": {
    "w": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "permuted": np.arange(24, dtype=np.float16).reshape(2, 3, 4).transpose(1, 2, 0),
    "scalar": np.float32(0.25),
  },
  "net": {"steps": np.array([1, 2], np.int64), "big": np.arange(3, dtype=">f4")},
}
DEMO = "train/configs/demo_pretrain.py"


def haiku_pickles(folder):
  path = folder / "weights.npz"

  def read(content):
    path.write_bytes(content)
    read_haiku(str(path))

  return [pickle.dumps(TREE, protocol) for protocol in range(6)], read


def safetensors_files(folder):
  path = folder / "weights.safetensors"
  tensors = {
    f"{module}/{leaf}": np.ascontiguousarray(array).astype(np.float32)
    for module, leaves in TREE.items()
    for leaf, array in leaves.items()
  }

  def read(content):
    path.write_bytes(content)
    read_safetensors(str(path))

  small = {name: array[:1] for name, array in tensors.items() if array.ndim}
  return [safetensors.numpy.save(tensors, {"format": "pt"}), safetensors.numpy.save(small)], read


def checkpoint_metadata(folder):
  path = folder / EXPERIMENT_ITEM / "metadata"
  path.parent.mkdir()
  metadata = {
    **{"experiment": to_json(load_experiment(DEMO)), "num_classes": 2, "step": 7},
    **{"class_names": ["cat", "dog"], "counts": {"skipped": 0}, "left_out": [[1, 2]]},
  }

  def read(content):
    path.write_bytes(content)
    found = read_metadata(folder)
    # What evaluation does with it.
    override(from_json(found.get("experiment", {})), [])

  return [json.dumps(metadata).encode()], read


def checkpoint_digests(folder):
  for name in ("params/a", "params/b", "experiment/metadata"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"content")
  path = folder / DIGESTS_FILE
  line = b"ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73  "
  seed = b"".join(
    line + name + b"\n" for name in (b"experiment/metadata", b"params/a", b"params/b")
  )

  def read(content):
    path.write_bytes(content)
    damage = find_damage(folder)
    assert damage is None or (damage.isprintable() and len(damage) < 300)

  return [seed], read


def manifests(folder):
  files = tuple(
    RecordFile(file=f"train-{i}.array_record", records=9, size_bytes=900, sha256="0" * 64)
    for i in range(2)
  )
  splits = {
    "train": Split(records=18, record_files=files),
    "empty": Split(records=0, record_files=()),
  }
  save_manifest(
    folder,
    Manifest(
      class_names=("cat", "dog"), labels_per_record_max=1, splits=splits, skipped_images=("a.jpg",)
    ),
  )
  path = folder / "manifest.json"
  seed = path.read_bytes()

  def read(content):
    path.write_bytes(content)
    manifest = load_manifest(folder)
    assert manifest.splits.keys() is not None

  return [seed], read


def sweep_plans(folder):
  path = folder / "plan.toml"
  common = f'config = "{DEMO}"\nvariants = ["P0", "N0"]\nepochs = [0.5, 1]\n'
  overrides = "[overrides]\noptimizer.warmup_steps = 20\ndata.horizontal_flip = false\n"
  search = 'learning_rates = "search"\nstart_learning_rate = 0.1\n'

  def read(content):
    path.write_bytes(content)
    load_plan(str(path))

  plans = [common + "learning_rates = [0.1, 0.05]\n" + overrides, common + search + overrides]
  return [plan.encode() for plan in plans], read


READERS = (
  *(haiku_pickles, safetensors_files, checkpoint_metadata, checkpoint_digests, manifests),
  sweep_plans,
)
"""Functions of an empty folder that return valid contents, and the function that reads one."""


@pytest.mark.parametrize("inputs", [50, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reader", READERS)
def test_mutations_of_valid_files(reader, inputs, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  seeds, read = reader(tmp_path)
  for seed in seeds:
    read(seed)
  contents = itertools.islice(mutations(seeds, random.Random(inputs)), inputs)
  findings = run_bounded(read, contents)
  assert findings == [], describe(findings)


READERS_BY_PATH = {
  "inputs": lambda path: read_inputs(str(path)),
  "haiku pickle": lambda path: read_haiku(str(path)),
  "safetensors file": lambda path: read_safetensors(str(path)),
  "JSON": read_json,
  "image": read_image_file,
  "record file": lambda path: open_record_file(
    path.parent, RecordFile(file=path.name, records=1, size_bytes=1, sha256="")
  ),
  "record file to hash": lambda path: describe_file(path.parent, path.name, 1),
  "configuration": lambda path: load_experiment(str(path)),
  "sweep plan": lambda path: load_plan(str(path)),
  "log of a trial": lambda path: worker._last_line(path, 0),
  "table of runs": lambda path: read_runs([path]),
  "speed of a step": lambda path: step_speed(str(path)),
  "idx file": lambda path: idx_files._read_idx(path.parent, path.name, dimensions=3),
  "table of labels": lambda path: list(label_table.read_rows(str(path), Options())),
  "tar file": lambda path: webdataset.has_labels(str(path.parent), [path.name]),
  "file in the place of another": known_mistake,
  "ids of a run": lambda path: id_log._repair(path.parent, path.name),
  DIGESTS_FILE: lambda path: find_damage(path.parent),
}


@pytest.mark.parametrize("name", READERS_BY_PATH)
def test_no_reader_waits_for_the_writer_of_a_pipe(name, tmp_path):
  path = tmp_path / name
  os.mkfifo(path)

  def read(_):
    with contextlib.suppress(OSError):
      READERS_BY_PATH[name](path)

  findings = run_bounded(read, [b""])
  assert findings == [], describe(findings)


FUZZ_CHECKPOINT = """
  import itertools, pathlib, random, shutil, sys
  from nfnet.weights.checkpoint_digests import write_digests
  from nfnet.weights.load import load_weights
  from tests.fuzzing import describe, mutations, run_bounded

  folder, inputs = pathlib.Path(sys.argv[1]), int(sys.argv[2])
  files = sorted(
    path for item in ("params", "experiment") for path in (folder / item).rglob("*")
    if path.is_file() and "process_0/d" not in str(path)
  )
  rng = random.Random(inputs)
  contents = []
  for _ in range(inputs):
    number = rng.randrange(len(files))
    contents.append(bytes([number]) + next(mutations(files[number].read_bytes(), rng)))

  def read(content):
    # Whoever makes a checkpoint makes its digests too.
    path = files[content[0]]
    whole = path.read_bytes()
    path.write_bytes(content[1:])
    write_digests(folder)
    try:
      load_weights(str(folder))
    finally:
      path.write_bytes(whole)

  findings = run_bounded(read, contents, inputs_per_process=200)
  print(describe(findings))
  sys.exit(bool(findings))
"""

MAKE_CHECKPOINT = """
  import sys
  import numpy as np
  from nfnet.initialization import initial_parameters
  from nfnet.model import NFNet
  from train.config.files import load_experiment
  from train.config.json_conversion import to_json
  from train.run.checkpoints.manager import Checkpoints

  experiment = load_experiment("train/configs/demo_pretrain.py")
  with Checkpoints(sys.argv[1], keep=1) as checkpoints:
    checkpoints.save(
      1,
      parameters=initial_parameters(NFNet("P0", 2), 0),
      ema=None,
      optimizer={"steps": np.zeros(1, np.float32)},
      data_state={},
      metadata={"experiment": to_json(experiment), "class_names": ["cat", "dog"]},
    )
"""


@pytest.mark.slow
def test_mutations_of_the_files_of_a_checkpoint(tmp_path):
  """Each reader runs in a process of its own, as threads of Orbax do not survive a fork."""

  def run(code, *arguments):
    return subprocess.run(
      [sys.executable, "-c", textwrap.dedent(code), *arguments],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  made = run(MAKE_CHECKPOINT, str(tmp_path))
  assert made.returncode == 0, made.stderr
  found = run(FUZZ_CHECKPOINT, str(pathlib.Path(tmp_path, "checkpoints", "1")), "2000")
  assert found.returncode == 0, found.stdout + found.stderr[-2000:]
