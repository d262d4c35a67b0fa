import json
import os

import pytest

from nfnet.errors import UserError
from nfnet.weights.checkpoint_identity import (
  RUN_FILE,
  checkpoint_steps,
  find_mix_up,
  read_run,
  step_of,
  write_run,
)

FOREIGN_NAMES = [
  "24.bak",
  "foo",
  ".DS_Store",
  "24.orbax-checkpoint-tmp-1700000000",
  "x24.orbax-checkpoint-tmp",
  "024",
  "+24",
  "-24",
  " 24",
  "24\n",
  "24_",
  "step_24",
  "2_4",
  "0",
  "4e1",
  "2147483648",
  "9" * 200,
  "٢٤",
  "2²",
  os.fsdecode(b"24\xff"),
]
"""Names that no save gives to a checkpoint, though some of them can be read as numbers."""


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_a_foreign_name_is_no_step(name, tmp_path):
  assert step_of(name) is None
  (tmp_path / name).mkdir()
  assert checkpoint_steps(tmp_path) == []


def test_steps_are_listed_in_order(tmp_path):
  for name in ("100", "20", "3", "2147483647"):
    (tmp_path / name).mkdir()
  assert checkpoint_steps(tmp_path) == [3, 20, 100, 2**31 - 1]
  assert checkpoint_steps(tmp_path / "absent") == []


def test_in_a_bucket_a_checkpoint_is_there_once_its_save_has_ended(gcs):
  for name in ("3/commit_success.txt", "20/a", "20/commit_success.txt", "100/a/commit_success.txt"):
    gcs.put(f"run/checkpoints/{name}", b"")
  gcs.put("run/checkpoints/commit_success.txt", b"")
  gcs.put("run/checkpoints/24.bak/commit_success.txt", b"")
  assert checkpoint_steps(f"{gcs.url}/run/checkpoints") == [3, 20]
  gcs.refuse(403)
  with pytest.raises(UserError, match="cannot be listed: PERMISSION_DENIED"):
    checkpoint_steps(f"{gcs.url}/run/checkpoints")


def place(workdir, name, run=None):
  """Returns the place of a checkpoint in a workdir that belongs to a run."""
  if run is not None:
    write_run(workdir, run)
  return workdir / "checkpoints" / name


@pytest.mark.parametrize(
  ("metadata", "mix_up"),
  [
    ({"step": 20, "run": "a"}, None),
    # A version that named no runs.
    ({"step": 20}, None),
    ({"step": 8, "run": "a"}, "by its content it is the checkpoint of step 8"),
    ({"step": 8}, "by its content it is the checkpoint of step 8"),
    ({"step": "20", "run": "a"}, "by its content it is the checkpoint of step '20'"),
    ({"step": True, "run": "a"}, "by its content it is the checkpoint of step True"),
    ({"step": 20.0, "run": "a"}, "by its content it is the checkpoint of step 20.0"),
    ({}, "by its content it is the checkpoint of step None"),
    ({"step": 20, "run": "b"}, "it belongs to run 'b', the workdir to run 'a' (run.json)"),
    ({"step": 20, "run": 7}, "it belongs to run 7, the workdir to run 'a' (run.json)"),
    (
      {"step": 20, "run": "\x1b\n" * 99},
      "it belongs to run '" + r"\x1b\n" * 40 + "'..., the workdir to run 'a' (run.json)",
    ),
  ],
)
def test_step_and_run_are_compared_with_the_place(metadata, mix_up, tmp_path):
  assert find_mix_up(place(tmp_path, "20", "a"), metadata) == mix_up


def test_without_a_place_that_tells_nothing_is_compared(tmp_path):
  metadata = {"step": 20, "run": "a"}
  assert find_mix_up(place(tmp_path, "20"), metadata) is None
  assert find_mix_up(place(tmp_path, "latest"), metadata) is None
  assert find_mix_up(tmp_path / "models" / "8", metadata) is None
  assert "run 'b'" in find_mix_up(place(tmp_path, "latest", "b"), metadata)


def test_the_name_of_a_run_is_read_as_it_was_written(tmp_path):
  assert read_run(tmp_path) is None
  for run in ("a", "b"):
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
  assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]


@pytest.mark.parametrize(
  "content", [b"", b"{", b"[" * 900, b"\xff", b"[]", b"{}", json.dumps({"run": 3}).encode()]
)
def test_a_file_that_names_no_run(content, tmp_path):
  (tmp_path / RUN_FILE).write_bytes(content)
  assert read_run(tmp_path) is None


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_what_cannot_be_read_names_no_run(make, tmp_path):
  make(tmp_path / RUN_FILE)
  assert read_run(tmp_path) is None
