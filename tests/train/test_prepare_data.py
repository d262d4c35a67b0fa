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
