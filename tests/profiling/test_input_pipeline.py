import json
import os
import subprocess
import sys

import pytest

from nfnet.errors import UserError
from profiling.estimate.stored import RESULTS
from profiling.input_pipeline import available_cores, step_speed
from tests.repository import ROOT
from tests.train.data import image_files
from train.data import record_reader


def test_the_speed_of_a_step_is_read_where_it_was_stored(tmp_path):
  path = tmp_path / "step.json"
  assert step_speed(str(path)) is None
  # The real command wrote this file.
  assert 1000 < step_speed(str(RESULTS / "step_f0.json")) < 4000
  path.write_text('{"estimated": {"mfu": 0.5}}')
  with pytest.raises(UserError, match="--step_json="):
    step_speed(str(path))


def test_on_a_mac_one_line_says_what_is_missing(monkeypatch):
  assert available_cores() >= 1
  monkeypatch.delattr(os, "sched_getaffinity")
  with pytest.raises(UserError, match="compare input pipelines on Linux"):
    available_cores()


def run_command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "profiling.input_pipeline", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )


def test_training_and_pillow_are_measured_by_the_real_command(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  image = image_files.encode(image_files.noise(0, 600, 800), "JPEG", quality=95)
  (source / "0.jpg").write_bytes(image)
  # So many names of the same file that the data set is not trained from memory.
  count = int(1.2 * record_reader.IN_MEMORY_BYTES_MAX / len(image))
  for number in range(1, count):
    (source / f"{number}.jpg").hardlink_to(source / "0.jpg")
  (tmp_path / "step.json").write_text('{"estimated": {"images_per_second_per_chip": 1000.0}}')
  process = run_command(
    f"--images={source}",
    f"--step_json={tmp_path / 'step.json'}",
    f"--json={tmp_path / 'out.json'}",
    *("--rounds=1", "--batches=6", "--batch_size=8", "--pixels=32", "--cores=1"),
  )
  assert process.returncode == 0, process.stderr
  result = json.loads((tmp_path / "out.json").read_text())
  assert result["images"]["count"] == count
  (found,) = result["runs"]
  for pipeline in ("this project", "Pillow"):
    assert found[pipeline]["images"] == 48
    assert found[pipeline]["cores"] == 1
    speeds = result["speeds"][pipeline]
    assert speeds["images_per_cpu_second"][0] == 48 / found[pipeline]["cpu_seconds"]
    assert speeds["images_per_second_per_core"][0] == 48 / found[pipeline]["seconds"]
  needed = 4 * 1000.0 / result["speeds"]["this project"]["images_per_cpu_second"][0]
  assert result["host"]["cores"] == pytest.approx(needed)
  assert f"needs {needed:.1f} cores" in process.stdout


def test_a_data_set_that_would_be_trained_from_memory_is_refused(tmp_path):
  (tmp_path / "0.jpg").write_bytes(image_files.encode(image_files.noise(0), "JPEG"))
  process = run_command(f"--images={tmp_path}")
  assert process.returncode == 2
  assert "is trained from memory" in process.stderr
