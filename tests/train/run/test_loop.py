import dataclasses
import functools
import itertools
import os
import pathlib
import re
import shutil
import sys
import threading

import jax
import numpy as np
import pytest

from nfnet.errors import InUseError, UserError
from nfnet.initialization import initial_parameters
from nfnet.weights.checkpoint_identity import read_run
from nfnet.weights.checkpoint_reader import block_keys, checkpoint_folder, read_checkpoint
from nfnet.weights.haiku import save_haiku
from nfnet.weights.timm import save_timm
from tests.docs.pages import read_page
from tests.file_modes import group_umask, modes_beside_group_umask
from tests.repository import ROOT
from tests.streams import Stream
from tests.train.conftest import HELD_OUT_DIGITS
from tests.train.data import image_files
from tests.train.saved_checkpoint import save_checkpoint
from tests.train.shared_steps import share_steps
from tests.train.small_network import SMALL, TINY
from train.config.experiment import Data, Experiment, Loss, Model, Optimizer, Schedule
from train.config.files import load_experiment
from train.config.json_conversion import to_json
from train.data import dataset_writer
from train.data.batch_workers.deaths import WorkerDeaths
from train.data.dataset import balanced_class_weights, local_folder
from train.data.preparation.class_folders import TRAIN, VALIDATION
from train.data.sources.source import Source
from train.demo_data import make_digits
from train.run import evaluation as evaluation_module
from train.run import loop
from train.run.evaluation import evaluate_checkpoint, evaluate_on, evaluate_weights
from train.run.exit_codes import EXIT_LOST_PROCESS
from train.run.faults import DIVERGED
from train.run.initial_weights import with_new_classifier
from train.run.leases.workdir_lease import lease_on
from train.run.loop import train
from train.run.records.bookkeeping import DAMAGED_FOLDER
from train.run.records.goodput import COMPILE, read_goodput
from train.run.records.loggers import load_loggers
from train.run.records.metrics import read_metrics
from train.run.termination import Terminated, Termination
from train.step.model import make_model
from train.step.sharding.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("small_networks", "few_programs")
DEVICES = 2


@pytest.fixture(scope="module")
def few_programs():
  """Programs for two devices take less time than those for eight, and runs share them."""
  with pytest.MonkeyPatch.context() as patch:
    share_steps(patch)
    for module in (loop, evaluation_module):
      patch.setattr(module, "make_mesh", functools.partial(make_mesh, jax.devices()[:DEVICES]))
    yield


@pytest.fixture(scope="module")
def experiment(digits):
  return Experiment(
    name="test run",
    model=Model(
      variant=TINY.name, compute_dtype="float32", block_execution="unrolled", dropout_rate=0.1
    ),
    data=Data(
      path=str(digits),
      num_classes=10,
      batch_size=64,
      evaluation_batch_size=40,
      train_pixels=16,
      evaluation_pixels=16,
      evaluation_resize_margin=0,
      horizontal_flip=False,
      crop_area_min=0.6,
    ),
    optimizer=Optimizer(peak_learning_rate=0.2, warmup_steps=3, ema_decay=0.9),
    loss=Loss(label_smoothing=0.1),
    schedule=Schedule(
      train_steps=20, log_every_steps=5, evaluate_every_steps=10, checkpoint_every_steps=10
    ),
  )


@pytest.fixture(scope="module")
def finished(experiment, small_networks, few_programs, tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp("runs") / "finished")
  with group_umask():
    return workdir, train(experiment, workdir)


def with_data(experiment, **fields):
  return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **fields))


def test_records_every_part_of_the_run(finished):
  _, records = finished
  steps = [record for record in records if record["kind"] == "train"]
  evaluations = [record for record in records if record["kind"] == "evaluation"]
  assert [record["step"] for record in steps] == [5, 10, 15, 20]
  assert [(record["step"], record["ema"]) for record in evaluations] == [
    (10, False),
    (10, True),
    (20, False),
    (20, True),
  ]
  assert all(record["examples"] == HELD_OUT_DIGITS for record in evaluations)
  assert steps[-1]["loss"] < steps[0]["loss"]
  # Ten classes: chance is 10 %.
  assert evaluations[-1]["top1"] > 0.3
  assert 0 <= steps[-1]["data_wait_share"] <= 1


def test_the_speed_of_the_first_steps_is_without_their_compilation(finished):
  workdir, records = finished
  first = next(record for record in records if record["kind"] == "train")
  seconds = 5 * 64 / first["images_per_second"]
  assert seconds < read_goodput(workdir).seconds[COMPILE]


def test_leaves_checkpoints_and_plots(finished):
  workdir = pathlib.Path(finished[0])
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "20"]
  assert {path.name for path in (workdir / "plots").iterdir()} == {
    "loss.png",
    "learning_rate.png",
    "accuracy.png",
  }
  assert any((workdir / "tensorboard").iterdir())


def test_all_that_a_run_writes_follows_the_umask(finished):
  assert modes_beside_group_umask(pathlib.Path(finished[0])) == {}


def test_resumed_run_ends_in_the_same_parameters(experiment, finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "resumed")
  shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "20")
  records = train(experiment, str(tmp_path / "resumed"))
  for prefer_ema in (False, True):
    jax.tree.map(
      np.testing.assert_array_equal,
      read_checkpoint(str(tmp_path / "resumed"), prefer_ema=prefer_ema)[0],
      read_checkpoint(finished[0], prefer_ema=prefer_ema)[0],
    )
  assert [(r["step"], r["kind"]) for r in records] == [(r["step"], r["kind"]) for r in finished[1]]


def test_loggers_get_the_records_and_change_nothing(
  experiment, finished, tmp_path, caplog, monkeypatch
):
  """One is that of the documentation, one fails, and one hangs until the training is over."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  shutil.rmtree(workdir / "checkpoints" / "20")
  (program,) = (b.text for b in read_page(ROOT / "docs" / "loggers.md") if b.kind == "python")
  (tmp_path / "my_loggers.py").write_text(program)
  monkeypatch.setattr(sys, "path", list(sys.path))
  runs, records = [], []
  training_is_over = threading.Event()

  class Kept:
    def __init__(self, run):
      runs.append(run)

    def write(self, record):
      records.append(record)

    def close(self):
      training_is_over.set()

  class Hangs(Kept):
    def write(self, record):
      assert training_is_over.wait(60)

  class Fails(Kept):
    def write(self, record):
      raise ConnectionError("no network")

  references = [f"{tmp_path}/my_loggers.py:EvaluationTable"]
  loggers = {**load_loggers(references), "kept": Kept, "hangs": Hangs, "fails": Fails}
  written = train(experiment, str(workdir), loggers=loggers)
  sys.modules.pop("my_loggers")
  # Where the speed is, each start has its own.
  as_trained = [(r["step"], r["kind"], r.get("ema"), r["loss"]) for r in written]
  assert as_trained == [(r["step"], r["kind"], r.get("ema"), r["loss"]) for r in finished[1]]
  assert records == [record for record in written if record["step"] > 10]
  assert runs[0].resumed_step == 10
  assert runs[0].id == read_run(workdir)
  assert runs[0].configuration == to_json(experiment)
  rows = [f"{r['step']},{r['ema']},{r['top1']}" for r in records if r["kind"] == "evaluation"]
  assert (workdir / "evaluations.csv").read_text().splitlines() == rows
  assert "logger fails is left out: " in caplog.text
  assert "hangs" not in caplog.text


def test_books_that_are_damaged_keep_no_run_from_its_end(experiment, finished, tmp_path, capsys):
  """Neither a run that resumes nor one that is finished, whose last evaluation is repeated."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  for part in ("unfinished", "finished"):
    if part == "unfinished":
      shutil.rmtree(workdir / "checkpoints" / "20")
    files = [workdir / "metrics.jsonl", workdir / "goodput.jsonl", *(workdir / "ids").iterdir()]
    for file in [*files, *(workdir / "tensorboard").iterdir()]:
      file.write_bytes(b"\xff\0 nothing of this run\n" * 5)
    if part == "unfinished":
      shutil.rmtree(workdir / "plots")
      (workdir / "plots").write_text("a file in the place of a folder")
    records = train(experiment, str(workdir))
    evaluations = [(r["step"], r["ema"]) for r in records if r["kind"] == "evaluation"]
    assert evaluations == [(20, False), (20, True)]
    assert records[-1]["top1"] == finished[1][-1]["top1"]
    assert "starts: 1" in capsys.readouterr().out
  for name in ("metrics.jsonl", "goodput.jsonl", "ids/00000.bin"):
    assert (workdir / DAMAGED_FOLDER / name).stat().st_size > 0


@pytest.mark.parametrize("steps", [[], ["10"]], ids=["new", "resumed"])
def test_a_run_that_ends_before_its_first_batch_saves_nothing(
  steps, experiment, finished, tmp_path, monkeypatch
):
  if steps:
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "20")
  monkeypatch.setattr(Termination, "is_due_alone", lambda self: True)
  with pytest.raises(Terminated):
    train(experiment, str(tmp_path))
  assert [path.name for path in tmp_path.glob("checkpoints/*")] == steps


def test_a_run_whose_workers_are_killed_again_and_again_saves_its_step(
  experiment, finished, tmp_path, monkeypatch, capsys
):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "checkpoints" / "20")
  asked = itertools.count()
  monkeypatch.setattr(WorkerDeaths, "are_too_many", lambda self: next(asked) > 4)
  with pytest.raises(Terminated) as ended:
    train(experiment, str(tmp_path))
  # What supervises the run starts it again.
  assert ended.value.code == EXIT_LOST_PROCESS
  newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
  assert 10 < newest < 20
  assert re.search(
    rf"data workers were killed .*; stopped after step {newest}, of which "
    "there is a checkpoint; run the same command again to resume",
    capsys.readouterr().out,
  )


@pytest.mark.slow
def test_resumes_with_blocks_run_another_way(experiment, tmp_path):
  """Checkpoints hold the blocks as the run that saved them arranged them."""
  finished, workdir = tmp_path / "finished", tmp_path / "resumed"
  # With blocks that a loop can run.
  experiment = dataclasses.replace(
    experiment, model=dataclasses.replace(experiment.model, variant=SMALL.name)
  )
  train(experiment, str(finished))
  shutil.copytree(finished, workdir)
  for execution, step in (("scan", 10), ("unrolled", 15)):
    for folder in (workdir / "checkpoints").iterdir():
      if int(folder.name) > step:
        shutil.rmtree(folder)
    changed = dataclasses.replace(
      experiment,
      model=dataclasses.replace(experiment.model, block_execution=execution),
      schedule=dataclasses.replace(experiment.schedule, checkpoint_every_steps=5),
    )
    train(changed, str(workdir))
    keys = block_keys(checkpoint_folder(str(workdir)))
    assert ("2:4" in keys) == (execution == "scan")
  for prefer_ema in (False, True):
    found, _ = read_checkpoint(str(workdir), prefer_ema=prefer_ema)
    expected, _ = read_checkpoint(str(finished), prefer_ema=prefer_ema)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    # Equal arithmetic in other fusions, over 10 steps.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 * np.abs(b).max() + 1e-5),
      found,
      expected,
    )


def test_finished_run_started_again_does_no_step(experiment, finished):
  assert train(experiment, finished[0]) == finished[1]


def test_a_run_that_cannot_start_says_so_in_one_line(experiment, tmp_path):
  (tmp_path / "file").write_text("")
  without_data = with_data(experiment, path=str(tmp_path / "nowhere"))
  shutil.copytree(experiment.data.path, tmp_path / "short")
  (record_file,) = (tmp_path / "short").glob("validation*")
  record_file.write_bytes(record_file.read_bytes()[:-1])
  for changed, workdir, message in (
    (without_data, tmp_path / "run", re.escape(str(tmp_path / "nowhere"))),
    (with_data(experiment, evaluation_split="test"), tmp_path / "run", "no images in split 'test'"),
    (with_data(experiment, path=str(tmp_path / "short")), tmp_path / "run", "validation.* bytes"),
    (experiment, tmp_path / "file" / "run", r"run' cannot be written: "),
  ):
    with pytest.raises(UserError, match=message) as error:
      train(changed, str(workdir))
    assert "\n" not in str(error.value)
  assert not list((tmp_path / "run").glob("*"))


def test_a_run_that_is_refused_leaves_nothing_behind(experiment, tmp_path):
  def refuse():
    raise UserError("no weights")

  with pytest.raises(UserError, match="no weights"):
    train(experiment, str(tmp_path / "run"), initial=refuse)
  assert not list(tmp_path.iterdir())


def test_mistakes_are_found_before_images_are_copied_from_a_bucket(experiment, gcs, tmp_path):
  def refuse():
    raise UserError("no weights")

  gcs.upload(pathlib.Path(experiment.data.path), "data")
  path = f"{gcs.url}/data"
  for fields, message in (
    ({}, "no weights"),
    ({"num_classes": 7}, "data.num_classes=7, but data set .* has 10 classes"),
    ({"evaluation_split": "test"}, "no images in split 'test'"),
  ):
    with pytest.raises(UserError, match=message):
      train(with_data(experiment, path=path, **fields), str(tmp_path), initial=refuse)
    assert os.listdir(local_folder(path)) == ["manifest.json"]


@pytest.mark.parametrize("class_weights", ["equal", "balanced"])
def test_classes_are_weighted_as_the_experiment_says(
  class_weights, experiment, tmp_path, monkeypatch
):
  def stop(*unused, class_weights):
    found.append(class_weights)
    raise UserError("made")

  found = []
  monkeypatch.setattr(loop, "make_train_step", stop)
  experiment = dataclasses.replace(experiment, loss=Loss(class_weights=class_weights))
  with pytest.raises(UserError, match="made"):
    train(experiment, str(tmp_path))
  if class_weights == "equal":
    assert found == [None]
  else:
    np.testing.assert_array_equal(found, [balanced_class_weights(experiment.data)])


def test_changed_experiment_is_not_resumed(experiment, finished):
  changed = dataclasses.replace(
    experiment, optimizer=dataclasses.replace(experiment.optimizer, peak_learning_rate=0.3)
  )
  starts = read_goodput(finished[0]).starts
  with pytest.raises(UserError, match=r"optimizer\.peak_learning_rate was 0\.2 and is now 0\.3"):
    train(changed, finished[0])
  assert read_goodput(finished[0]).starts == starts


def test_a_changed_experiment_is_refused_before_images_are_copied_from_a_bucket(
  experiment, gcs, tmp_path
):
  gcs.upload(pathlib.Path(experiment.data.path), "data")
  experiment = with_data(experiment, path=f"{gcs.url}/data")
  parameters = initial_parameters(make_model(experiment), seed=0)
  save_checkpoint(tmp_path, parameters, experiment=to_json(experiment), class_names=["a", "b"])
  changed = dataclasses.replace(
    experiment, optimizer=dataclasses.replace(experiment.optimizer, peak_learning_rate=0.3)
  )
  for asked, message in (
    (changed, r"optimizer\.peak_learning_rate was 0\.2 and is now 0\.3"),
    (experiment, "class 0 was 'a' and is now '0'"),
  ):
    with pytest.raises(UserError, match=message):
      train(asked, str(tmp_path))
    assert os.listdir(local_folder(experiment.data.path)) == ["manifest.json"]


def test_changed_images_are_not_resumed(experiment, finished, tmp_path):
  make_digits.make(tmp_path / "digits")
  manifest = tmp_path / "digits" / "manifest.json"
  # The same files under other digests: another data set.
  text = manifest.read_text()
  digest = text.split('"sha256": "')[1][:64]
  manifest.write_text(text.replace(digest, digest[::-1]))
  changed = with_data(experiment, path=str(tmp_path / "digits"))
  with pytest.raises(UserError, match="not the one that the saved"):
    train(changed, finished[0])


def test_a_run_without_a_moving_average_is_not_evaluated_as_if_it_had_one(
  experiment, tmp_path, monkeypatch
):
  without = dataclasses.replace(
    experiment, optimizer=dataclasses.replace(experiment.optimizer, ema_decay=None)
  )
  parameters = initial_parameters(make_model(without), seed=0)
  save_checkpoint(tmp_path, parameters, experiment=to_json(without))
  monkeypatch.setattr(evaluation_module, "_evaluate_network", lambda *arguments: [arguments[1]])
  found = evaluate_checkpoint(str(tmp_path), ["--config.optimizer.ema_decay=0.9"])
  assert found.evaluations == ["parameters"]


def test_evaluation_of_the_checkpoint_is_that_of_the_run(finished):
  evaluations, class_names, _ = evaluate_checkpoint(finished[0], pixels=[16, 24])
  assert class_names == tuple(map(str, range(10)))
  assert [(e.network, e.pixels) for e in evaluations] == [
    ("moving average", 16),
    ("moving average", 24),
    ("parameters", 16),
    ("parameters", 24),
  ]
  last = {r["ema"]: r for r in finished[1] if r["kind"] == "evaluation"}
  for evaluation, is_ema in ((evaluations[0], True), (evaluations[2], False)):
    for name, value in evaluation.scores.scalars().items():
      assert value == pytest.approx(last[is_ema][name], rel=1e-6), name
  assert evaluations[0].scores.loss != evaluations[1].scores.loss


def digits_as(folder, class_names, renamed=lambda name: name):
  """Writes the held-out digits whose classes have these names, and a few to train on."""
  source = make_digits.source()
  old = {index: renamed(name) for index, name in enumerate(source.class_names)}

  def kept(images):
    return tuple(
      dataclasses.replace(image, labels=(class_names.index(old[image.labels[0]]),))
      for image in images
      if old[image.labels[0]] in class_names
    )

  splits = {
    TRAIN: kept(source.splits[TRAIN][:50]),
    VALIDATION: kept(source.splits[VALIDATION][:HELD_OUT_DIGITS]),
  }
  dataset_writer.write_dataset(folder, Source(tuple(class_names), splits))
  return f"--config.data.path={folder}"


def test_classes_in_another_order_are_evaluated_by_their_names(finished, tmp_path, caplog):
  expected, class_names, _ = evaluate_checkpoint(finished[0])
  assert not caplog.messages
  turned = digits_as(tmp_path / "turned", list("5678901234"))
  evaluations, found_names, how = evaluate_checkpoint(finished[0], [turned])
  assert how == "by name"
  assert found_names == class_names
  for one, other in zip(evaluations, expected, strict=True):
    assert one.scores.scalars() == pytest.approx(other.scores.scalars(), rel=1e-6)
    np.testing.assert_array_equal(one.scores.class_top1, other.scores.class_top1)
  assert all("matched by name" in message for message in caplog.messages)
  assert len(caplog.messages) == 1

  # Some of the classes, in whatever order; the network may still take them for the others.
  some = digits_as(tmp_path / "some", ["7", "3"])
  evaluations, found_names, _ = evaluate_checkpoint(
    finished[0], [some, "--config.data.num_classes=2"]
  )
  assert found_names == class_names
  for one, other in zip(evaluations, expected, strict=True):
    np.testing.assert_array_equal(one.scores.class_top1[[3, 7]], other.scores.class_top1[[3, 7]])
    assert np.isnan(np.delete(one.scores.class_top1, [3, 7])).all()


def test_classes_that_the_network_does_not_know_are_refused(experiment, finished, tmp_path):
  # As many as the network's.
  others = digits_as(tmp_path / "others", [f"n{i}" for i in range(10)], lambda name: f"n{name}")
  message = (
    r"has 10 of 10 classes that checkpoint .* does not know: 'n0', 'n1', .* lacks 10: '0', '1',"
  )
  with pytest.raises(UserError, match=message) as error:
    evaluate_checkpoint(finished[0], [others])
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match=r"data\.num_classes=7: checkpoint .* has 10 classes"):
    evaluate_checkpoint(finished[0], ["--config.data.num_classes=7"])


@pytest.mark.parametrize(
  ("field", "value", "own"),
  [
    ("variant", "F0", TINY.name),
    ("activation", "relu", "gelu"),
    ("numerics", "timm", "released"),
  ],
)
def test_a_checkpoint_is_evaluated_as_the_network_that_it_is(finished, field, value, own):
  message = rf"model\.{field}={value}: checkpoint '.*' has {field} {own}; leave out the change"
  with pytest.raises(UserError, match=message):
    evaluate_checkpoint(finished[0], [f"--config.model.{field}={value}"])


def test_a_checkpoint_of_another_network_than_it_says_is_not_evaluated(experiment, tmp_path):
  parameters = initial_parameters(make_model(experiment), 0)
  del parameters["stem"]
  save_checkpoint(tmp_path, parameters, experiment=to_json(experiment))
  with pytest.raises(UserError, match="stem/conv0/weight is missing; they fit no variant"):
    evaluate_checkpoint(str(tmp_path))


def test_a_run_does_not_go_on_with_classes_of_other_names(experiment, finished, tmp_path):
  digits = pathlib.Path(experiment.data.path)
  shutil.copytree(digits, tmp_path / "digits")
  image_files.edit_manifest(tmp_path / "digits", lambda fields: fields["class_names"].reverse())
  changed = with_data(experiment, path=str(tmp_path / "digits"))
  with pytest.raises(UserError, match="class 0 was '0' and is now '9'"):
    train(changed, finished[0])


def test_a_second_run_in_the_same_workdir_is_refused(experiment, tmp_path):
  with lease_on(tmp_path), pytest.raises(InUseError, match="in use by process") as error:
    train(experiment, str(tmp_path))
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_gone_ends_the_run(experiment, tmp_path):
  workdir = tmp_path / "run"

  def lose():
    workdir.rename(tmp_path / "away")
    return initial_parameters(make_model(experiment), 0)

  with pytest.raises(UserError, match="is gone: it has been renamed or removed") as error:
    train(experiment, str(workdir), initial=lose)
  assert "\n" not in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ["away"]


def test_released_and_timms_weights_are_evaluated_as_a_configuration_says(
  experiment, finished, tmp_path, caplog
):
  trained, _ = read_checkpoint(finished[0], prefer_ema=True)
  path = str(tmp_path / "weights")
  save_haiku(path, trained, TINY.name)
  (evaluation,), class_names, _ = evaluate_weights(path, experiment)
  assert "have no names: assumed to be those of data set" in caplog.text
  assert class_names == tuple(map(str, range(10)))
  of_average = next(r for r in reversed(finished[1]) if r["kind"] == "evaluation" and r["ema"])
  assert (evaluation.network, evaluation.pixels) == ("parameters", 16)
  assert evaluation.scores.loss == pytest.approx(of_average["loss"], rel=1e-6)
  save_timm(path, trained, TINY.name)
  timms = dataclasses.replace(
    experiment, model=dataclasses.replace(experiment.model, numerics="timm")
  )
  (other,), _, _ = evaluate_weights(path, timms)
  assert other.scores.loss != evaluation.scores.loss
  assert other.scores.loss == pytest.approx(evaluation.scores.loss, rel=0.05)


AS_TRAINED = (
  "--config.data.evaluation_batch_size=40",
  "--config.model.block_execution=unrolled",
  "--config.data.evaluation_resize_margin=0",
  "--config.data.evaluation_resize=shorter_side",
)
"""With them, weights are evaluated by the program that the run has compiled."""


def test_weights_of_any_kind_are_evaluated_without_a_configuration(finished, tmp_path):
  trained, _ = read_checkpoint(finished[0], prefer_ema=True)
  of_average = next(r for r in reversed(finished[1]) if r["kind"] == "evaluation" and r["ema"])
  # The classes are in another order than the network's.
  digits_as(tmp_path / "turned", list("5678901234"))
  data = str(tmp_path / "turned")
  names = tmp_path / "names.txt"
  names.write_text("\n".join(map(str, range(10))))
  for save, file in ((save_haiku, "haiku.npz"), (save_timm, "timm.safetensors")):
    path = str(tmp_path / file)
    save(path, trained, TINY.name)
    (evaluation,), class_names, how = evaluate_on(
      path, data, AS_TRAINED, pixels=[16], class_names_file=str(names)
    )
    assert (evaluation.network, evaluation.pixels) == ("parameters", 16)
    assert class_names == tuple(map(str, range(10)))
    assert "by name" in how
    assert evaluation.scores.loss == pytest.approx(of_average["loss"], rel=1e-6)
    assert evaluation.scores.top1 == pytest.approx(of_average["top1"])
    with pytest.raises(UserError, match=r"10 classes without names, and data set .* --class_names"):
      evaluate_on(path, data)
    for change, message in (
      ("model.variant=F0", rf"model\.variant=F0: weights '.*' has variant {TINY.name}; leave"),
      ("data.num_classes=7", r"data\.num_classes=7: weights '.*' have 10 classes and data set"),
    ):
      with pytest.raises(UserError, match=message):
        evaluate_on(path, data, [f"--config.{change}"], class_names_file=str(names))
  evaluations, _, how = evaluate_on(finished[0], data, AS_TRAINED)
  assert [one.network for one in evaluations] == ["moving average", "parameters"]
  assert evaluations[0].scores.loss == pytest.approx(of_average["loss"], rel=1e-6)
  assert how == "by name"
  with pytest.raises(UserError, match="names its classes"):
    evaluate_on(finished[0], data, class_names_file=str(names))


def test_weights_of_another_kind_are_not_evaluated(experiment, finished, tmp_path):
  with pytest.raises(UserError, match=r"are a checkpoint, .* use --workdir"):
    evaluate_weights(finished[0], experiment)
  model = make_model(dataclasses.replace(experiment, data=Data(num_classes=7)))
  save_haiku(str(tmp_path / "weights"), initial_parameters(model, 0), TINY.name)
  with pytest.raises(UserError, match=r"have 7 classes, data set '.*' has 10"):
    evaluate_weights(str(tmp_path / "weights"), experiment)


def test_evaluation_shows_its_progress_on_a_terminal_only(finished, monkeypatch):
  for is_terminal in (True, False):
    monkeypatch.setattr(sys, "stderr", Stream(is_terminal))
    evaluate_checkpoint(finished[0])
    assert ("evaluating" in sys.stderr.getvalue()) == is_terminal
    assert (f"/{HELD_OUT_DIGITS} [" in sys.stderr.getvalue()) == is_terminal


def test_fine_tuning_starts_from_all_but_the_classifier(experiment, finished):
  started = with_new_classifier(
    dataclasses.replace(experiment, initial_weights=finished[0], seed=5)
  )
  trained, _ = read_checkpoint(finished[0], prefer_ema=True)
  np.testing.assert_array_equal(
    started["stem"]["conv0"]["weight"], trained["stem"]["conv0"]["weight"]
  )
  assert not started["classifier"]["bias"].any()
  assert not np.array_equal(started["classifier"]["weight"], trained["classifier"]["weight"])


@pytest.mark.parametrize(
  ("field", "trained", "asked"), [("activation", "gelu", "silu"), ("numerics", "released", "timm")]
)
def test_fine_tuning_refuses_weights_of_other_formulas(experiment, finished, field, trained, asked):
  other = dataclasses.replace(
    experiment,
    initial_weights=finished[0],
    model=dataclasses.replace(experiment.model, **{field: asked}),
  )
  message = rf"trained with --config\.model\.{field}={trained}, not {asked}"
  with pytest.raises(UserError, match=message):
    with_new_classifier(other)


def test_run_that_diverges_stops_and_says_so(experiment, tmp_path):
  # As after an explosion; another learning rate would be another program to compile.
  def exploded():
    parameters = initial_parameters(make_model(experiment), 0)
    return jax.tree.map(lambda x: np.full_like(x, np.nan), parameters)

  message = (
    r"10 steps in a row were skipped, from step 1 \(loss nan\) to 10 .*peak_learning_rate=0.1"
  )
  with pytest.raises(UserError, match=message) as error:
    train(experiment, str(tmp_path), initial=exploded)
  assert not (tmp_path / "checkpoints").exists()
  last = read_metrics(tmp_path)[-1]
  assert last == {"step": 10, "kind": "event", "text": str(error.value), "fault": DIVERGED}


def test_batch_that_does_not_divide_among_devices_is_refused(experiment, tmp_path):
  odd = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch_size=65))
  with pytest.raises(
    UserError, match=rf"data\.batch_size=65 does not divide among {DEVICES} devices"
  ):
    train(odd, str(tmp_path))


def test_an_address_is_no_workdir(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="mount any other storage and give its path"):
    train(
      load_experiment(str(ROOT / "train/configs/demo_pretrain.py")),
      "s3://bucket/run",
    )
  assert not list(tmp_path.iterdir())
