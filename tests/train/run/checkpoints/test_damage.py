"""Real checkpoints that were damaged, renamed, swapped or copied in from elsewhere."""

import errno
import functools
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.weights.checkpoint_digests import write_digests
from nfnet.weights.checkpoint_identity import read_run
from nfnet.weights.checkpoint_reader import ITEMS, read_checkpoint
from tests.nfnet.weights.test_checkpoint_identity import FOREIGN_NAMES
from train.config.experiment import Experiment, Optimizer, Schedule
from train.config.json_conversion import to_json
from train.run.checkpoints.manager import BEST_METRIC, Checkpoints

EXPERIMENT = Experiment(
  name="saved", optimizer=Optimizer(warmup_steps=1), schedule=Schedule(train_steps=9)
)
OTHER_EXPERIMENT = Experiment(
  name="saved", optimizer=Optimizer(warmup_steps=1), schedule=Schedule(train_steps=10)
)
CLASS_NAMES = ["a", "b"]
KEPT = 3


def save(checkpoints, step, experiment=EXPERIMENT, class_names=CLASS_NAMES):
  arrays = {"w": np.full(8, step, np.float32)}
  checkpoints.save(
    step,
    parameters=arrays,
    ema=arrays,
    optimizer=arrays,
    data_state={"global_next_index": step},
    metadata={"experiment": to_json(experiment), "class_names": class_names},
    metrics={BEST_METRIC: 0.1},
  )
  checkpoints.wait()


def restore(workdir, *, experiment=EXPERIMENT, class_names=CLASS_NAMES):
  """Opens a workdir as a run does; returns the step restored and those set aside."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = {"w": jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding)}
  with Checkpoints(str(workdir), keep=KEPT) as checkpoints:
    restored = checkpoints.restore(
      parameters=like, ema=like, optimizer=like, experiment=experiment, class_names=class_names
    )
    assert restored.metadata["step"] == restored.step
    for tree in (restored.parameters, restored.ema, restored.optimizer):
      assert np.all(np.asarray(tree["w"]) == restored.step)
    assert not set(restored.set_aside) & set(checkpoints.all_steps())
    # Nothing is in the way of what comes next; the oldest checkpoint is deleted for it.
    for step in range(restored.step + 1, restored.step + 3):
      save(checkpoints, step, experiment)
  return restored.step, set(restored.set_aside)


def folder_names(workdir, folder="checkpoints"):
  return sorted(path.name for path in (workdir / folder).glob("*"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Two runs of one experiment, each with the checkpoints of steps 3, 5 and 6."""
  folder = tmp_path_factory.mktemp("saved")
  for name in ("run", "other"):
    with Checkpoints(str(folder / name), keep=KEPT) as checkpoints:
      for step in (3, 5, 6):
        save(checkpoints, step)
  return folder


@pytest.fixture
def workdir(saved, tmp_path):
  shutil.copytree(saved / "run", tmp_path / "run")
  return tmp_path / "run"


def as_folder(path):
  path.unlink()
  path.mkdir()


def as_pipe(path):
  path.unlink()
  os.mkfifo(path)


def as_link(path, target):
  path.unlink()
  path.symlink_to(target)


FILES = ["digests.sha256", "params/manifest.ocdbt", "experiment/metadata", "metrics/metrics"]
HOW = {
  "folder": as_folder,
  "pipe": as_pipe,
  "link to itself": lambda path: as_link(path, path),
  "link to nothing": lambda path: as_link(path, "nowhere"),
  # Reading it gives EIO, as a broken disk does.
  "i/o error": lambda path: as_link(path, "/proc/self/mem"),
  "endless": lambda path: as_link(path, "/dev/zero"),
  "empty": lambda path: path.write_bytes(b""),
  "not text": lambda path: path.write_bytes(b"\xff\0" * 9),
}


@pytest.mark.parametrize(
  ("how", "file"),
  [
    # By default each way with one file, and each file in two ways.
    pytest.param(how, file, marks=() if (i + 1) % len(FILES) == j else pytest.mark.slow)
    for i, how in enumerate(HOW)
    for j, file in enumerate(FILES)
  ],
)
def test_a_file_that_cannot_be_read_is_damage(how, file, workdir):
  HOW[how](workdir / "checkpoints/6" / file)
  if not file.startswith("metrics"):
    with pytest.raises(UserError, match="cannot be read") as error:
      read_checkpoint(str(workdir), prefer_ema=False)
    assert "\n" not in str(error.value)
  assert restore(workdir) == (5, {6})
  assert folder_names(workdir, "checkpoints_damaged") == ["6"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["params", "experiment", "experiment/metadata", "digests.sha256"])
def test_what_may_not_be_read_is_damage(name, workdir):
  (workdir / "checkpoints/6" / name).chmod(0)
  assert restore(workdir) == (5, {6})


def replace_by(make):
  def replace(place):
    shutil.rmtree(place)
    make(place)

  return replace


def remove_item(item, place):
  shutil.rmtree(place / item)


PLACES = {
  "empty folder": replace_by(lambda place: place.mkdir()),
  "folder without files but digests": replace_by(
    lambda place: [place.mkdir(), (place / "digests.sha256").write_text("")]
  ),
  "file": replace_by(lambda place: place.write_text("")),
  "pipe": replace_by(os.mkfifo),
  "link to nothing": replace_by(lambda place: place.symlink_to("nowhere")),
  "link to itself": replace_by(lambda place: place.symlink_to(place)),
  "link to another checkpoint": replace_by(lambda place: place.symlink_to(place.parent / "5")),
  "moved, with a link to it": lambda place: [
    place.rename(place.parent.parent / "elsewhere"),
    place.symlink_to(place.parent.parent / "elsewhere"),
  ],
  **{f"without {item}": functools.partial(remove_item, item) for item in ITEMS},
}

FURTHER = [f"without {item}" for item in ITEMS[2:]]


@pytest.mark.parametrize(
  ("step", "what"),
  [
    # That an item is missing is seen in the same way for each of them.
    pytest.param(step, what, marks=pytest.mark.slow if what in FURTHER else ())
    for step in (6, 3)
    for what in PLACES
  ],
)
def test_what_is_in_the_place_of_a_checkpoint(step, what, workdir):
  PLACES[what](workdir / "checkpoints" / str(step))
  restored, aside = restore(workdir)
  if step == 6:
    assert (restored, aside) == (5, {6})
  else:
    # Only what would be in the way of deleting it later.
    assert restored == 6
    assert aside == ({3} if os.path.lexists(workdir / "checkpoints_damaged/3") else set())
    assert not os.path.lexists(workdir / "checkpoints/3")


@pytest.mark.parametrize("item", ["params", "experiment"])
def test_an_item_that_the_digests_do_not_name_either_is_missing(item, workdir):
  shutil.rmtree(workdir / "checkpoints/6" / item)
  write_digests(workdir / "checkpoints/6")
  with pytest.raises(UserError, match=f"{item} is missing"):
    read_checkpoint(str(workdir), prefer_ema=False)
  assert restore(workdir) == (5, {6})


def move(workdir, old, new):
  (workdir / "checkpoints" / old).rename(workdir / "checkpoints" / new)


def swap(workdir, item):
  """Swaps an item of the two newest checkpoints."""
  one, other = (workdir / "checkpoints" / step / item for step in "56")
  one.rename(workdir / "held")
  other.rename(one)
  (workdir / "held").rename(other)


@pytest.mark.parametrize(
  ("change", "step", "aside"),
  [
    (lambda workdir, saved: move(workdir, "3", "20"), 6, {20}),
    (lambda workdir, saved: move(workdir, "6", "4"), 5, {4}),
    (lambda workdir, saved: swap(workdir, ""), 3, {5, 6}),
    *(
      pytest.param(
        *(lambda workdir, saved, item=item: swap(workdir, item), 3, {5, 6}),
        marks=() if item in ("params", "metrics", "digests.sha256") else pytest.mark.slow,
        id=f"{item} swapped",
      )
      for item in (*ITEMS, "metrics", "digests.sha256")
    ),
  ],
)
def test_a_checkpoint_in_another_place_is_not_trained_on(change, step, aside, workdir, saved):
  change(workdir, saved)
  assert restore(workdir) == (step, aside)


def copy_in(workdir, source, step, name=None):
  """Copies a checkpoint of another run into a workdir."""
  target = workdir / "checkpoints" / (name or str(step))
  shutil.rmtree(target, ignore_errors=True)
  shutil.copytree(source / "checkpoints" / str(step), target)


@pytest.mark.parametrize(("step", "expected"), [(6, (5, {6})), (5, (6, {5})), (3, (6, {3}))])
def test_a_checkpoint_of_another_run_is_not_trained_on(step, expected, workdir, saved):
  copy_in(workdir, saved / "other", step)
  if step == 6:
    with pytest.raises(
      UserError, match=r"is not what its place says: it belongs to run '"
    ) as error:
      read_checkpoint(str(workdir))
    assert "\n" not in str(error.value)
  assert restore(workdir) == expected
  # It is not deleted either.
  assert folder_names(workdir, "checkpoints_damaged") == [str(step)]


def test_of_two_runs_neither_is_guessed(workdir, saved):
  copy_in(workdir, saved / "other", 6)
  (workdir / "run.json").unlink()
  with pytest.raises(UserError, match=r"steps 5 and 6 in .* are of different runs"):
    restore(workdir)
  assert folder_names(workdir) == ["3", "5", "6"]


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"run": 3}'])
def test_the_name_of_the_run_is_found_in_its_checkpoints_again(content, workdir):
  run = read_run(workdir)
  (workdir / "run.json").unlink()
  if content is not None:
    (workdir / "run.json").write_bytes(content)
  assert restore(workdir) == (6, set())
  assert read_run(workdir) == run


def test_another_start_in_the_same_workdir_is_another_run(workdir, saved):
  first = read_run(workdir)
  shutil.rmtree(workdir / "checkpoints")
  with Checkpoints(str(workdir), keep=KEPT) as checkpoints:
    save(checkpoints, 3)
  assert read_run(workdir) not in (None, first, read_run(saved / "other"))


def edit_metadata(folder, edit):
  """Changes the metadata of a checkpoint as another version may have written it."""
  path = folder / "experiment" / "metadata"
  metadata = json.loads(path.read_text())
  edit(metadata)
  path.write_text(json.dumps(metadata))
  write_digests(folder)


def test_checkpoints_that_do_not_name_their_run_are_the_workdirs_own(workdir):
  for step in ("3", "5", "6"):
    edit_metadata(workdir / "checkpoints" / step, lambda metadata: metadata.pop("run"))
  (workdir / "run.json").unlink()
  assert "run" not in read_checkpoint(str(workdir))[1]
  assert restore(workdir) == (6, set())
  # The next ones do.
  assert read_checkpoint(str(workdir))[1]["run"] == read_run(workdir) is not None


def test_a_checkpoint_of_another_experiment_is_set_aside_if_an_older_one_fits(workdir):
  def change(metadata):
    metadata["experiment"] = to_json(OTHER_EXPERIMENT)
    del metadata["run"]

  edit_metadata(workdir / "checkpoints/6", change)
  assert restore(workdir) == (5, {6})


def test_the_runs_own_checkpoint_of_another_experiment_is_never_passed_over(workdir):
  """This happens when a run went on with an accepted change and is resumed as it was before."""
  edit_metadata(
    workdir / "checkpoints/6",
    lambda metadata: metadata.update(experiment=to_json(OTHER_EXPERIMENT)),
  )
  with pytest.raises(UserError, match=r"schedule\.train_steps was 10 and is now 9"):
    restore(workdir)
  assert folder_names(workdir) == ["3", "5", "6"]


def test_another_experiment_moves_nothing(workdir):
  for changes, message in (
    ({"experiment": OTHER_EXPERIMENT}, r"schedule\.train_steps was 9 and is now 10"),
    ({"class_names": ["b", "a"]}, "class 0 was 'a' and is now 'b'"),
    ({"class_names": ["a", "b", "c"]}, "class 2 was 'missing' and is now 'c'"),
    ({"class_names": ["a"]}, "class 1 was 'b' and is now 'missing'"),
    ({"class_names": ["a", "\x1b[31m\n" * 9]}, r"and is now '\\x1b\[31m\\n"),
  ):
    with pytest.raises(UserError, match=message) as error:
      restore(workdir, **changes)
    assert "\n" not in str(error.value)
    assert folder_names(workdir) == ["3", "5", "6"]


def test_metadata_that_do_not_name_their_step_are_out_of_place(workdir):
  edit_metadata(workdir / "checkpoints/6", lambda metadata: metadata.clear())
  assert restore(workdir) == (5, {6})


@pytest.mark.parametrize(
  ("edit", "difference"),
  [
    (lambda metadata: metadata.pop("experiment"), "they name no experiment"),
    (lambda metadata: metadata.update(experiment=[]), "experiment is "),
    (lambda metadata: metadata.update(experiment={"name": "x", "model": 3}), "experiment.model is"),
    (lambda metadata: metadata.update(class_names={"0": "a"}), "class_names is "),
    (lambda metadata: metadata.update(counts=[1, 2]), "counts is "),
    (lambda metadata: metadata.update(left_out=[{"first": 1, "last": 2}]), r"left_out\[0\] is "),
    (lambda metadata: metadata.update(step=None), "step is None"),
    (lambda metadata: metadata.update(step=[6]), r"step is \[6\]"),
  ],
)
def test_a_checkpoint_of_a_newer_version_is_refused_and_stays(edit, difference, workdir, saved):
  edit_metadata(workdir / "checkpoints/6", edit)
  with pytest.raises(UserError, match=f"saved by a newer version, .*{difference}.*; use the ver"):
    restore(workdir)
  assert folder_names(workdir) == ["3", "5", "6"]
  # One that is damaged does not change that, nor do those that are later.
  edit_metadata(workdir / "checkpoints/5", edit)
  shutil.rmtree(workdir / "checkpoints/6/experiment")
  with pytest.raises(UserError, match="checkpoints/5 was saved by a newer version"):
    restore(workdir)
  assert folder_names(workdir) == ["3", "5", "6"]
  shutil.rmtree(workdir / "checkpoints/6")
  shutil.copytree(saved / "run/checkpoints/6", workdir / "checkpoints/6")
  assert restore(workdir) == (6, set())
  assert not (workdir / "checkpoints_damaged").exists()


def test_when_nothing_can_be_used_nothing_moves(workdir):
  for step in ("3", "5", "6"):
    (workdir / "checkpoints" / step / "digests.sha256").unlink()
  with pytest.raises(UserError, match=r"none of its 3 checkpoints can") as error:
    restore(workdir)
  assert "digests.sha256 is missing" in str(error.value)
  assert folder_names(workdir) == ["3", "5", "6"]


def test_a_place_for_damaged_ones_that_is_taken(workdir):
  (workdir / "checkpoints/6/digests.sha256").unlink()
  (workdir / "checkpoints_damaged").mkdir()
  for name in ("6", "6.1"):
    (workdir / "checkpoints_damaged" / name).symlink_to("nowhere")
  assert restore(workdir) == (5, {6})
  assert (workdir / "checkpoints_damaged/6.2/params").is_dir()


def test_damaged_ones_behind_a_link_to_another_file_system_stay_beside_the_others(
  workdir, monkeypatch
):
  rename = pathlib.Path.rename

  def rename_in_folder(path, target):
    if path.parent != target.parent:
      raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return rename(path, target)

  monkeypatch.setattr(pathlib.Path, "rename", rename_in_folder)
  (workdir / "checkpoints/6/digests.sha256").unlink()
  (workdir / "checkpoints/6.damaged").mkdir()
  assert restore(workdir) == (5, {6})
  assert (workdir / "checkpoints/6.damaged.1/params").is_dir()


def test_a_file_where_damaged_ones_are_moved_is_named(workdir):
  (workdir / "checkpoints/6/digests.sha256").unlink()
  (workdir / "checkpoints_damaged").write_text("")
  with pytest.raises(UserError, match="checkpoints_damaged' is in the way") as error:
    restore(workdir)
  assert "\n" not in str(error.value)


def test_foreign_names_are_left_alone(workdir):
  places = [workdir / "checkpoints" / name for name in FOREIGN_NAMES]
  for place in places[::2]:
    place.mkdir()
    (place / "file").write_text("kept")
  for place in places[1::2]:
    place.write_text("kept")
  assert read_checkpoint(str(workdir))[1]["step"] == 6
  assert restore(workdir) == (6, set())
  assert read_checkpoint(str(workdir))[1]["step"] == 8
  for place in places:
    assert (place / "file" if place.is_dir() else place).read_text() == "kept"


@pytest.mark.parametrize(
  "name", ["3.orbax-checkpoint-tmp-of-somebody", "3.orbax-checkpoint-tmp.bak"]
)
def test_what_is_named_like_an_interrupted_save_is_not_deleted_in_place_of_a_checkpoint(
  name, workdir
):
  (workdir / "checkpoints" / name).mkdir()
  assert restore(workdir) == (6, set())
  assert folder_names(workdir) == [name, "6", "7", "8"]


def test_a_checkpoint_that_cannot_be_deleted_does_not_end_the_run(workdir, monkeypatch, caplog):
  def refuse(path, *arguments, **options):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(shutil, "rmtree", refuse)
  assert restore(workdir) == (6, set())
  assert folder_names(workdir) == ["3", "5", "6", "7", "8"]
  assert any("step 3 could not be deleted" in message for message in caplog.messages)


def test_an_interrupted_save_is_removed(workdir):
  (workdir / "checkpoints/8.orbax-checkpoint-tmp/params").mkdir(parents=True)
  assert restore(workdir) == (6, set())
  assert folder_names(workdir) == ["6", "7", "8"]
