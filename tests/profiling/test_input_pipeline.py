import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from nfnet.errors import UserError
from profiling import input_pipeline
from profiling.estimate.stored import RESULTS
from profiling.measure import input_worker
from tests.repository import ROOT
from tests.train.data import image_files
from train.data import record_reader


def run(seconds, cpu_seconds, images=100, cores=2):
  return {"images": images, "seconds": seconds, "cpu_seconds": cpu_seconds, "cores": cores}


MISSING = {"not_measured": "ModuleNotFoundError: No module named 'timm'"}


def test_speeds_are_a_core_and_ratios_within_a_round():
  rounds = [
    {
      "this project": run(0.1, 0.1),
      "tf.data": run(0.2, 0.3),
      "tf.data, antialiased": run(0.05, 0.05),
      "timm": MISSING,
      "Pillow": run(1.0, 1.0, cores=1),
    },
    # All twice as slow, but for Pillow.
    {
      "this project": run(0.2, 0.2),
      "tf.data": run(0.4, 0.4),
      "tf.data, antialiased": run(0.1, 0.1),
      "timm": MISSING,
      "Pillow": run(1.0, 1.0, cores=1),
    },
  ]
  result = input_pipeline.summarize(rounds)
  assert result["speeds"]["this project"] == {
    "images_per_cpu_second": [750, 500, 1000],
    "images_per_second_per_core": [375, 250, 500],
  }
  assert result["speeds"]["Pillow"]["images_per_second_per_core"] == [100, 100, 100]
  assert result["speeds"]["timm"] == MISSING
  # Better quality is no rival, however fast.
  assert result["best_rival"] == "tf.data"
  assert result["ratio_to_best_rival_by_cpu"] == pytest.approx([2.5, 2, 3])
  assert result["ratio_to_best_rival_by_clock"] == pytest.approx([2, 2, 2])


def test_what_failed_in_one_round_is_not_measured():
  rounds = [{"this project": run(1, 1), "Pillow": run(1, 1)}, {"this project": MISSING}]
  rounds[1]["Pillow"] = run(1, 1)
  result = input_pipeline.summarize(rounds)
  assert result["speeds"]["this project"] == MISSING
  assert "best_rival" not in result


def test_a_host_needs_cores_for_four_chips():
  assert input_pipeline.cores_needed(1800.0, 900.0) == 8


def test_the_speed_of_a_step_is_read_where_it_was_stored(tmp_path):
  path = tmp_path / "step.json"
  assert input_pipeline._step_speed(str(path)) is None
  # What the real command wrote.
  assert 1000 < input_pipeline._step_speed(str(RESULTS / "step_f0.json")) < 4000
  path.write_text('{"estimated": {"mfu": 0.5}}')
  with pytest.raises(UserError, match="--step_json="):
    input_pipeline._step_speed(str(path))


def test_rounds_rotate(monkeypatch):
  order = []
  monkeypatch.setattr(
    input_pipeline, "measure", lambda pipeline, *_: (order.append(pipeline), run(1, 1))[1]
  )
  pipelines = {name: ("python", []) for name in ("this project", "tf.data", "Pillow")}
  rounds = input_pipeline._run_rounds(pipelines, 3)
  assert order[::3] == ["this project", "tf.data", "Pillow"]
  assert [list(one) for one in rounds] == [list(pipelines)] * 3


def test_a_missing_package_is_not_measured(tmp_path):
  blocked = tmp_path / "timm.py"
  blocked.write_text("raise ModuleNotFoundError('no timm here')")
  environment = pytest.MonkeyPatch()
  environment.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
  with environment.context():
    result = input_pipeline.measure("timm", sys.executable, ["--images=x", "--cores=1"])
  environment.undo()
  assert result == {"not_measured": "ModuleNotFoundError: no timm here"}


def test_an_interpreter_that_is_none():
  with pytest.raises(UserError, match="--python=/nonexistent/python does not run"):
    input_pipeline.measure("timm", "/nonexistent/python", [])


def test_a_folder_without_images(tmp_path):
  with pytest.raises(UserError, match=r"holds no \*\.jpg"):
    input_pipeline.link_images(tmp_path, str(tmp_path))


def test_generated_images_have_imagenets_size(tmp_path):
  input_pipeline.generate_images(tmp_path, 16)
  paths = sorted(tmp_path.iterdir())
  assert len({path.read_bytes() for path in paths}) == 16
  for path in paths:
    with image_files.Image.open(path) as image:
      assert image.size == (500, 375)
  assert np.mean([path.stat().st_size for path in paths]) == pytest.approx(110e3, rel=0.05)


def test_pillows_crops_have_the_distribution_of_training():
  generator = random.Random(0)
  boxes = np.array([input_worker._random_box(1000, 1000, generator) for _ in range(4000)])
  widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
  # As in tests/train/data/test_augmentation.py.
  assert (widths * heights / 1e6).mean() == pytest.approx(0.478, abs=0.016)
  assert np.log(widths / heights).mean() == pytest.approx(0, abs=0.015)
  assert (boxes[:, 0] - (1000 - boxes[:, 2])).mean() == pytest.approx(0, abs=20)


def test_cpu_time_is_that_of_all_processes():
  before = input_worker.cpu_seconds()
  code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ntime.sleep(60)"
  with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    running = input_worker.cpu_seconds() - before
    process.kill()
  ended = input_worker.cpu_seconds() - before
  # The clock ticks a hundred times a second.
  assert running >= 0.45
  assert ended >= 0.45
  started = input_worker.cpu_seconds()
  time.sleep(0.3)
  assert input_worker.cpu_seconds() - started < 0.2


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
  # A data set that is not trained from memory: the same file under many names.
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
