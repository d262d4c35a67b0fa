"""Sweeps of real, short trainings by real workers, which are stopped and killed."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from nfnet.cost import count
from tests.processes import wait_for
from tests.quick_compilation import XLA_FLAGS
from tests.repository import ROOT
from train.audit_data import audit
from train.run.exit_codes import EXIT_TERMINATED
from train.run.records.goodput import read_goodput
from train.run.records.metrics import read_metrics
from train.sweep.finetuning import finetune_sweep
from train.sweep.folder import SweepFolder
from train.sweep.plan import load_plan, make_trial
from train.sweep.trial import number_text

CONFIG = "tests/train/small_network.py"
EPOCHS = 0.4
"""25 steps."""
SOME_EPOCHS = 0.8
"""50 steps, so that a run does not end before it is stopped."""
MORE_EPOCHS = 1.6
"""100 steps, so that a run does not end before it is stopped twice."""
PLAN = """
config = "{config}"
variants = ["tiny"]
epochs = [{epochs}]
learning_rates = {rates}
[overrides]
data.path = "{data}"
data.batch_size = 16
optimizer.warmup_steps = 2
optimizer.ema_decay = "none"
schedule.log_every_steps = 1
schedule.checkpoint_every_steps = 8
"""
SILENT_SECONDS_MAX = 10


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sweep(digits, cache, small_networks, tmp_path):
  """Starts and looks at the workers of one sweep."""
  return Sweep(digits, cache, tmp_path)


class Sweep:
  def __init__(self, data, cache, folder):
    self._cache = cache
    self._data = data
    self.plan_path = folder / "plan.toml"
    self._workers = 0
    self._outputs = folder
    self.folder = SweepFolder(folder / "sweep")

  def plan(self, rates, further="", *, epochs=EPOCHS):
    plan = PLAN.format(config=ROOT / CONFIG, rates=rates, data=self._data, epochs=epochs)
    self.plan_path.write_text(plan + further)

  def start(self, *arguments):
    """One more worker."""
    self._workers += 1
    environment = {
      **os.environ,
      "XLA_FLAGS": XLA_FLAGS,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with self.output(self._workers).open("w") as file:
      return subprocess.Popen(
        [
          *(sys.executable, "-m", "tests.train.small_network", "train.sweep"),
          *(f"--plan={self.plan_path}", f"--folder={self.folder.path}"),
          f"--compilation_cache={self._cache}",
          *(f"--silent_seconds_max={SILENT_SECONDS_MAX}", *arguments),
        ],
        cwd=ROOT,
        env=environment,
        stdout=file,
        stderr=subprocess.STDOUT,
      )

  def output(self, worker):
    return self._outputs / f"worker{worker}.txt"

  def states(self):
    return {name: entry.state for name, entry in self.folder.entries().items()}

  def step(self, name):
    """The last step that a trial has recorded."""
    try:
      return [r["step"] for r in read_metrics(self.folder.workdir(name)) if r["kind"] == "train"][
        -1
      ]
    except Exception:
      return 0

  def starts(self, name):
    """The workers that have started a trial, and where each of them went on."""
    log = self.folder.log(name).read_text()
    workers = re.findall(r"^\d{4}-\S+ \S+  (\S+): python -m train.pretrain ", log, re.MULTILINE)
    steps = re.findall(r"; (?:starting|resuming after step (\d+)); compiling", log)
    return workers, [int(step or 0) for step in steps]

  def finetune(self):
    """Fine-tunes all trials with two seeds each, for a few steps."""
    self._workers += 1
    environment = {**os.environ, "XLA_FLAGS": XLA_FLAGS}
    with self.output(self._workers).open("w") as file:
      subprocess.run(
        [
          *(sys.executable, "-m", "train.finetune_sweep", f"--folder={self.folder.path}"),
          *(f"--config={CONFIG}", *self._finetuning()),
          *("--seeds=2", "--all_trials", f"--compilation_cache={self._cache}"),
        ],
        cwd=ROOT,
        env=environment,
        stdout=file,
        stderr=subprocess.STDOUT,
        check=True,
      )

  def finetune_again(self):
    """Asks for the same in this process, which is quick where all of it is done."""
    finetune_sweep(
      self.folder,
      str(ROOT / CONFIG),
      self._finetuning(),
      seeds=2,
      all_trials=True,
      probe_images_max=20_000,
    )

  def finetuned(self):
    """Returns the rows of the table of what was fine-tuned."""
    with (self.folder.path / "finetuned.csv").open() as file:
      return list(csv.DictReader(file))

  def _finetuning(self):
    return [
      *(f"--config.data.path={self._data}", "--config.schedule.train_steps=4"),
      *("--config.optimizer.warmup_steps=1", "--config.data.batch_size=16"),
    ]

  def results(self):
    with (self.folder.path / "results.csv").open() as file:
      return list(csv.DictReader(file))


def pid_of(worker):
  """Returns the process id in a worker's name."""
  return int(worker.split(".")[-2])


def steps_of(epochs):
  """Returns the number of steps, in batches of 16 of 1000 images."""
  return round(epochs * 1000 / 16)


def assert_right(result, name, rate, *, epochs=EPOCHS):
  cost = count("tiny", num_classes=10, pixels=16)
  assert (result["trial"], result["name"], result["epochs"]) == (name, "tiny", str(epochs))
  assert result["learning_rate"] == rate
  assert int(result["parameters"]) == cost.parameters
  assert int(result["compute_flops"]) == 6 * cost.macs * steps_of(epochs) * 16
  assert 1 < float(result["loss_nats"]) < 4
  assert 0 < float(result["held_out_error_percent"]) < 100


def test_another_worker_goes_on_with_the_trial_of_one_that_is_killed(sweep):
  """And what is done is fine-tuned."""
  name = f"tiny_epochs-{SOME_EPOCHS}_rate-0.05"
  sweep.plan("[0.05]", epochs=SOME_EPOCHS)
  first = sweep.start()
  wait_for(lambda: sweep.step(name) >= 2, first)
  first.kill()
  first.wait()
  killed_seconds = time.monotonic()
  assert sweep.states() == {name: "running"}
  second = sweep.start()
  assert second.wait(timeout=300) == 0
  assert time.monotonic() - killed_seconds > SILENT_SECONDS_MAX - 5
  assert sweep.states() == {name: "done"}
  workers, steps = sweep.starts(name)
  assert [pid_of(worker) for worker in workers] == [first.pid, second.pid]
  # The training of the killed worker had time to save where it was.
  assert steps[0] == 0
  assert 2 <= steps[1] < steps_of(SOME_EPOCHS)
  found = audit(str(sweep.folder.workdir(name)))
  assert (found.starts, found.steps, found.repeated_steps) == (2, steps_of(SOME_EPOCHS), 0)
  assert_right(*sweep.results(), name, "0.05", epochs=SOME_EPOCHS)
  assert_fine_tunes_what_is_done(sweep, [name])


@pytest.mark.slow
def test_no_step_is_lost_by_workers_that_are_told_to_end_or_killed(sweep):
  name, steps_in_all = f"tiny_epochs-{MORE_EPOCHS}_rate-0.05", steps_of(MORE_EPOCHS)
  sweep.plan("[0.05]", epochs=MORE_EPOCHS)
  first = sweep.start()
  wait_for(lambda: sweep.step(name) >= 2, first)
  first.send_signal(signal.SIGTERM)
  assert first.wait(timeout=60) == EXIT_TERMINATED
  assert sweep.states() == {name: "waiting"}
  stopped_after = sweep.step(name)
  assert 2 <= stopped_after < steps_in_all
  # Others have it at once.
  second = sweep.start()
  wait_for(lambda: sweep.step(name) > stopped_after, second, seconds_max=SILENT_SECONDS_MAX + 50)
  third = sweep.start()
  second.kill()
  second.wait()
  killed_seconds = time.monotonic()
  assert sweep.states() == {name: "running"}
  assert third.wait(timeout=300) == 0
  assert time.monotonic() - killed_seconds > SILENT_SECONDS_MAX - 5
  assert sweep.states() == {name: "done"}
  workers, steps = sweep.starts(name)
  assert [pid_of(worker) for worker in workers] == [first.pid, second.pid, third.pid]
  assert steps[:2] == [0, stopped_after]
  # The training of the killed worker had time to save where it was.
  assert steps[2] > stopped_after
  found = audit(str(sweep.folder.workdir(name)))
  assert (found.starts, found.steps, found.repeated_steps) == (3, steps_in_all, 0)
  assert_right(*sweep.results(), name, "0.05", epochs=MORE_EPOCHS)


@pytest.mark.slow
@pytest.mark.parametrize("rates", ["0.05", "0.05 0.1"])
def test_two_workers_run_each_trial_once_and_keep_failures_apart(sweep, rates):
  good = {f"tiny_epochs-0.4_rate-{rate}": rate for rate in reversed(rates.split())}
  bad = "tiny_epochs-0.4_rate-0.2"
  sweep.plan([*map(float, good.values()), 0.2])
  # The workdir of one trial cannot be made.
  plan = load_plan(str(sweep.plan_path))
  sweep.folder.create(plan.fixed)
  sweep.folder.add(make_trial(plan, "tiny", EPOCHS, 0.2))
  sweep.folder.workdir(bad).write_text("")
  first, second = sweep.start(), sweep.start()
  assert first.wait(timeout=300) == second.wait(timeout=300) == 2
  assert sweep.states() == {**dict.fromkeys(good, "done"), bad: "failed"}
  workers = set()
  for name in good:
    (worker,), steps = sweep.starts(name)
    assert steps == [0]
    assert audit(str(sweep.folder.workdir(name))).steps == steps_of(EPOCHS)
    assert read_goodput(str(sweep.folder.workdir(name))).starts == 1
    workers.add(pid_of(worker))
  workers.update(map(pid_of, sweep.starts(bad)[0]))
  assert workers <= {first.pid, second.pid}
  for result, (name, rate) in zip(sweep.results(), good.items(), strict=True):
    assert_right(result, name, rate)
  # Both say what is done and what failed, where and why.
  failure = json.loads((sweep.folder.path / "failed" / bad).read_text())
  assert (failure["exit_code"], failure["diverged"]) == (2, False)
  assert "run is a file; give the path of a folder" in failure["reason"]
  assert "run is a file; give the path of a folder" in pathlib.Path(failure["log"]).read_text()
  for worker in (1, 2):
    output = sweep.output(worker).read_text()
    for name in good:
      assert f"{name}: done, held-out loss " in output
    assert f"{len(good)} done" in output
    error = output.splitlines()[-1]
    assert error.startswith(f"error: 1 of {len(good) + 1} trials failed; {bad}: --workdir=")
    assert "--retry_failed" in error
  assert_fine_tunes_what_is_done(sweep, list(good))


def assert_fine_tunes_what_is_done(sweep, good):
  sweep.finetune()
  table = sweep.finetuned()
  assert [row["trial"] for row in table] == good
  for row, result in zip(table, sweep.results(), strict=True):
    assert row.items() >= result.items()
    place = sweep.folder.path / "finetuned" / row["trial"]
    errors = []
    for seed in (0, 1):
      records = read_metrics(place / f"seed-{seed}")
      (last,) = (r for r in records if r["kind"] == "evaluation" and r["ema"])
      errors.append(100 * (1 - last["top1"]))
      assert (last["step"], last["examples"]) == (4, 100)
    # Other seeds are other runs.
    assert errors[0] != errors[1]
    assert float(row["top1_error_percent"]) == pytest.approx(sum(errors) / 2)
    deviation = abs(errors[0] - errors[1]) / 2**0.5
    assert float(row["top1_error_percent_deviation"]) == pytest.approx(deviation)
    assert row["seeds"] == "2"
    assert 0 < float(row["probe_error_percent"]) < 80
    assert 0 < float(row["probe_squared_error"]) < 0.9
  # What is done is not done again.
  logs = {path: path.read_text() for path in place.glob("seed-*/log.txt")}
  assert len(logs) == 2
  sweep.finetune_again()
  assert sweep.finetuned() == table
  assert {path: path.read_text() for path in logs} == logs


@pytest.mark.slow
def test_a_search_takes_a_diverged_rate_for_a_bad_one(sweep):
  """And what failed is run again, when it is mended and somebody asks."""
  sweep.plan(
    '"search"\nstart_learning_rate = 1e30',
    "faults.skipped_in_a_row_max = 2\noptimizer.agc_clipping = 'none'\n",
  )
  names = [f"tiny_epochs-0.4_rate-{number_text(1e30 / 2**step)}" for step in range(3)]
  plan = load_plan(str(sweep.plan_path))
  sweep.folder.create(plan.fixed)
  # This failure does not tell anything about rates, so the search stops in front of it.
  sweep.folder.add(make_trial(plan, "tiny", EPOCHS, 1e30))
  sweep.folder.workdir(names[0]).write_text("")
  assert sweep.start().wait(timeout=300) == 2
  assert sweep.states() == {names[0]: "failed"}
  sweep.folder.workdir(names[0]).unlink()
  worker = sweep.start("--retry_failed")
  wait_for(lambda: sweep.states().get(names[1]) == "failed", worker)
  wait_for(lambda: names[2] in sweep.states(), worker)
  worker.send_signal(signal.SIGTERM)
  assert worker.wait(timeout=60) == EXIT_TERMINATED
  for name in names[:2]:
    failure = json.loads((sweep.folder.path / "failed" / name).read_text())
    assert failure["diverged"]
    assert "2 steps in a row were skipped" in failure["reason"]
  assert sweep.states()[names[2]] == "waiting"
