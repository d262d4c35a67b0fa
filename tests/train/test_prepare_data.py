import os
import signal
import subprocess
import sys
import time

from tests.repository import ROOT
from tests.train.data import image_files
from train.data.dataset_writer import write_dataset
from train.data.image_sources import read_source
from train.data.manifest import MANIFEST_NAME
from train.report.units import format_size


def run_main(*arguments, interpreter_arguments=("-m", "train.prepare_data")):
  return subprocess.run(
    [sys.executable, *interpreter_arguments, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


RUN_WITH_LITTLE_DISK = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
runpy.run_module("train.prepare_data", run_name="__main__", alter_sys=True)
"""


def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 200, height=100, width=100)
  write_dataset(tmp_path / "whole", read_source(source, 0.3), files_per_split=40)
  out = tmp_path / "data"
  arguments = [f"--source={source}", f"--out={out}", "--evaluation_share=0.3", "--shards=40"]
  process = subprocess.Popen(
    [sys.executable, "-m", "train.prepare_data", *arguments, "--workers=1"],
    cwd=ROOT,
    stderr=subprocess.DEVNULL,
  )
  while process.poll() is None and len(list(out.glob("*.array_record"))) < 3:
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (out / MANIFEST_NAME).exists()
  finished = {path: path.stat().st_ino for path in out.glob("*.array_record")}
  assert 3 <= len(finished) < 80
  completed = run_main(*arguments, "--workers=0")
  assert completed.returncode == 0, completed.stderr
  assert image_files.file_hashes(out) == image_files.file_hashes(tmp_path / "whole")
  # The last of them may have lost its note in partial/, and is then written again.
  assert sum(path.stat().st_ino == inode for path, inode in finished.items()) >= len(finished) - 1


def test_a_full_disk_is_one_line_and_the_run_can_be_continued(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 30, height=100, width=100)
  arguments = [f"--source={source}", f"--out={tmp_path / 'data'}", "--workers=0"]
  failed = run_main(*arguments, interpreter_arguments=("-c", RUN_WITH_LITTLE_DISK))
  assert failed.returncode == 2
  # What was understood is said first.
  assert "  class 2, cat: " in failed.stdout
  assert "Traceback" not in failed.stderr
  assert "train-00000-of-00001.array_record" in failed.stderr.splitlines()[-1]
  assert "File too large" in failed.stderr.splitlines()[-1]
  completed = run_main(*arguments)
  assert completed.returncode == 0, completed.stderr


def test_the_program_from_folder_to_verified_data_set(tmp_path):
  source = image_files.write_class_folders(tmp_path / "source", 10)
  # Whether a file is held out depends on its name; one of these is, and another is not.
  for number in range(40):
    (source / "ant" / f"copy{number}.png").write_bytes(image_files.TEN_IMAGES[0][0])
  # The second command below finds it in the source.
  out = source / "data"
  completed = run_main(f"--source={source}", f"--out={out}", "--workers=2")
  assert completed.returncode == 0, completed.stderr
  lines = completed.stdout.splitlines()
  assert lines[0].startswith(f"{source}: 3 classes; classes are the folders in {source}; 10% of")
  assert any(line.startswith("  class 0, ant: ") for line in lines)
  assert lines.index(f"{out}: 3 classes, verified") > 5
  assert "images with the same pixels as an image of another split" in lines[-1]
  again = run_main(f"--source={source}", f"--out={out}", "--workers=0")
  assert "already holds a finished data set" in again.stderr
  assert {path.suffix for path in out.iterdir()} == {".json", ".array_record"}
  assert run_main(f"--verify={out}").returncode == 0
  path = out / "train-00000-of-00001.array_record"
  os.truncate(path, path.stat().st_size - 1)
  damaged = run_main(f"--verify={out}")
  assert damaged.returncode == 2
  assert str(path) in damaged.stderr.splitlines()[-1]
  assert "Traceback" not in damaged.stderr


SUMMARY = """\
{source}: 2 classes; splits are the folders train (train), val (validation)
  train: 6 images
  validation: 2 images
  train: classes have 2 images (bee) to 4 (ant), median 3
  validation: each class has 1 image
  class 0, ant: 4 + 1 images
  class 1, bee: 2 + 1 images
{out}: 2 classes, verified
  train: 5 images, {train_size}, 1 file
  validation: 2 images, {validation_size}, 1 file
-----------------------------------------------------------------------------------
                          smallest  5 %     25 %    median  75 %    95 %    largest
-----------------------------------------------------------------------------------
train: shorter side       20        20      20      20      20      100     100
train: longer side        40        40      40      40      40      200     200
train: pixels             800       800     800     800     800     20,000  20,000
validation: shorter side  100       100     100     100     100     100     100
validation: longer side   200       200     200     200     200     200     200
validation: pixels        20,000    20,000  20,000  20,000  20,000  20,000  20,000
-----------------------------------------------------------------------------------
  train, shorter side in pixels: below 32: 80.0%, 64 to 127: 20.0%
  validation, shorter side in pixels: 64 to 127: 100.0%
  left out because they cannot be read or decoded: 1 image; see manifest.json: train/ant/bad.jpg
  2 images with the same pixels as another image of the split, 1 of them with other labels; see \
repeated_images.json
  1 image with the same pixels as an image of another split; see images_in_two_splits.json; unless \
scores may count images that were trained on, remove what is listed there from the source
"""


def test_the_summary_that_is_printed(tmp_path):
  small, other = (image_files.noise(number, height=20, width=40) for number in range(2))
  large, held_out = (image_files.noise(number, height=200, width=100) for number in range(2))
  source = tmp_path / "source"
  for name, pixels in {
    "train/ant/a": small,
    "train/ant/copy of a": small,
    "train/ant/b": other,
    "train/bee/b": other,
    "train/bee/c": large,
    "val/ant/d": held_out,
    "val/bee/c": large,
  }.items():
    path = source / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_files.encode(pixels, "PNG"))
  (source / "train/ant/bad.jpg").write_bytes(b"bad")
  out = tmp_path / "data"
  completed = run_main(f"--source={source}", f"--out={out}", "--workers=0", "--skip_bad_images")
  assert (completed.returncode, completed.stderr) == (0, "")
  train_size, validation_size = (
    format_size((out / f"{split}-00000-of-00001.array_record").stat().st_size)
    for split in ("train", "validation")
  )
  assert completed.stdout == SUMMARY.format(
    source=source, out=out, train_size=train_size, validation_size=validation_size
  )
