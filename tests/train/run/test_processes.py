"""Real processes on one machine, over loopback."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from nfnet.errors import UserError
from nfnet.weights.checkpoint_reader import read_checkpoint
from tests import commands
from tests.processes import wait_for
from tests.quick_compilation import XLA_FLAGS
from tests.repository import ROOT
from tests.train.data import image_files
from tests.train.runs import free_port, is_listening
from tests.train.step.training import norm
from train.audit_data import audit
from train.run.exit_codes import EXIT_LOST_PROCESS, EXIT_TERMINATED
from train.run.processes import joined
from train.run.records.metrics import read_metrics

DEVICES = 4
STEPS = 8
ARGUMENTS = {
  "schedule.log_every_steps": 2,
  "schedule.evaluate_every_steps": "none",
  "schedule.checkpoint_every_steps": 4,
  "optimizer.warmup_steps": 2,
  "optimizer.ema_decay": 0.9,
  "data.num_classes": 3,
  "data.evaluation_batch_size": 8,
  "data.batch_size": 16,
  # Two epochs; BAD of each 64 images cannot be decoded.
  "data.bad_image_share_max": 0.1,
  "model.stochastic_depth_rate": 0.5,
  "model.dropout_rate": 0.3,
  "parallelism.parameter_shards": 2,
  "mixing.mixup_alpha": 0.2,
  "mixing.cutmix": "true",
}
# One group on each of the devices, which have other examples with every number of processes.
SHARPNESS_AWARE = {
  "sharpness.radius": 0.05,
  "sharpness.group_images": 4,
  "sharpness.ascent_share": 0.5,
}


BAD = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "noise"
  images = [(image_files.encode(image_files.noise(i), "PNG"), (i % 3,)) for i in range(64)]
  for i in range(3, 64, 13):
    images[i] = (images[i][0][:60], (0,))
  image_files.write_records(folder, {"train": images, "validation": images[:3]})
  return folder


def start(workdir, dataset, count, **changes):
  """Starts the processes, which have `DEVICES` devices together."""
  port = free_port()
  fields = {**ARGUMENTS, "schedule.train_steps": STEPS, "data.path": dataset, **changes}
  arguments = ["--config=tests/train/small_network.py", f"--workdir={workdir}"]
  arguments += [f"--config.{field}={x}" for field, x in fields.items()]
  flags = f"--xla_force_host_platform_device_count={DEVICES // count} {XLA_FLAGS}"
  started = []
  for i in range(count):
    who = [f"--coordinator=localhost:{port}", f"--process_count={count}", f"--process_index={i}"]
    with pathlib.Path(f"{workdir}.{count}.{i}.log").open("w") as log:
      started.append(
        commands.start(
          "train.pretrain",
          *arguments,
          *(who if count > 1 else []),
          log=log,
          environment={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        )
      )
  return started


def finish(started):
  for process in started:
    assert process.wait(timeout=500) == 0


def assert_same(workdir, expected, *, steps=STEPS):
  """Compares parameters, average and losses of two runs, up to the order of float32 sums."""
  for prefer_ema in (False, True):
    ours, theirs = (
      read_checkpoint(str(one), prefer_ema=prefer_ema)[0] for one in (workdir, expected)
    )
    assert norm(jax.tree.map(np.subtract, ours, theirs)) < 1e-5 * norm(theirs)
  ours, theirs = (read_metrics(str(one)) for one in (workdir, expected))
  assert [record["step"] for record in ours] == [record["step"] for record in theirs]
  for one, other in zip(ours, theirs, strict=True):
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    # Counted over all processes.
    assert one.get("bad_images") == other.get("bad_images")
  epochs = steps * 16 // 64
  assert [r["bad_images"] for r in ours if r["kind"] == "train"][-1] == epochs * BAD
  found = audit(str(workdir))
  assert (found.steps, found.images, found.complete_epochs) == (steps, 16 * steps, epochs)
  assert found.blank == epochs * BAD


@pytest.fixture(scope="module")
def one_process(dataset, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("one") / "run"
  finish(start(workdir, dataset, 1))
  return workdir


def test_two_processes_train_the_same_network(one_process, dataset, tmp_path):
  workdir = tmp_path / "run"
  finish(start(workdir, dataset, 2))
  assert_same(workdir, one_process)
  # One of them writes records and says how it goes.
  first, second = (pathlib.Path(f"{workdir}.2.{i}.log").read_text() for i in range(2))
  assert f"step {STEPS}/{STEPS}" in first
  assert "step " not in second


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, SHARPNESS_AWARE], ids=["plain", "sharpness-aware"])
def test_four_processes_train_the_same_network(arguments, dataset, tmp_path):
  finish(start(tmp_path / "one", dataset, 1, **arguments))
  finish(start(tmp_path / "four", dataset, 4, **arguments))
  assert_same(tmp_path / "four", tmp_path / "one")


# Long enough that no process can end before another one is killed.
MORE = {"schedule.train_steps": 48, "schedule.log_every_steps": 4}


@pytest.fixture(scope="module")
def one_process_for_longer(dataset, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("longer") / "run"
  finish(start(workdir, dataset, 1, **MORE))
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
  ("victim", "moment"), [(1, "4"), (1, "8.*"), (0, "4")], ids=["after", "in a save", "process 0"]
)
def test_a_process_that_dies_ends_the_others_and_all_resume(
  victim, moment, one_process_for_longer, dataset, tmp_path
):
  workdir = tmp_path / "run"
  processes = start(workdir, dataset, 2, **MORE)
  # Orbax renames a folder when it is whole.
  wait_for(lambda: list((workdir / "checkpoints").glob(moment)), *processes)
  processes[victim].send_signal(signal.SIGKILL)
  processes[victim].wait()
  survivor = 1 - victim
  code = processes[survivor].wait(timeout=60)
  output = pathlib.Path(f"{workdir}.2.{survivor}.log").read_text()
  if victim == 0:
    # JAX is faster than we are, since its connection is closed.
    assert code == -signal.SIGABRT
    assert "This most likely indicates that another task died" in output
  else:
    assert code == EXIT_LOST_PROCESS
    (line,) = (line for line in output.splitlines() if line.startswith("error:"))
    assert "process 0 of 2 has lost another one: process 1 has been silent for" in line
    assert line.endswith("start all of them again, they resume from the newest checkpoint")
  assert audit(str(workdir)).steps < MORE["schedule.train_steps"]
  # In another number than before.
  finish(start(workdir, dataset, 1, **MORE))
  assert_same(workdir, one_process_for_longer, steps=MORE["schedule.train_steps"])


RUN_THAT_FAILS = """
import sys
import time

import jax

from nfnet.command_line import run_main
from nfnet.errors import UserError
from train.run import processes


def main(arguments):
  with processes.joined():
    if jax.process_index() == int(arguments[1]):
      raise {"UserError": UserError, "ValueError": ValueError}[arguments[2]]("this one")
    time.sleep(200)


run_main(main)
"""


@pytest.mark.parametrize(
  ("culprit", "error", "code"),
  [
    (0, "UserError", 2),
    pytest.param(1, "UserError", 2, marks=pytest.mark.slow),
    # What nobody expects may be another process's end, which is waited for.
    pytest.param(0, "ValueError", 1, marks=pytest.mark.slow),
    pytest.param(1, "ValueError", 1, marks=pytest.mark.slow),
  ],
)
def test_a_process_that_fails_says_why_and_the_others_which(culprit, error, code, tmp_path):
  port = free_port()
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "-c", RUN_THAT_FAILS, f"--coordinator=localhost:{port}"),
        *("--process_count=2", f"--process_index={i}", str(culprit), error),
      ],
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=100)[1].splitlines() for process in processes]
  other = 1 - culprit
  assert processes[culprit].returncode == code
  assert processes[other].returncode == EXIT_LOST_PROCESS
  assert outputs[culprit][-1] == {2: "error: this one", 1: "ValueError: this one"}[code]
  assert f"process {culprit} has failed; its own output says why" in outputs[other][-1]


RUN_THAT_WAITS = """
import jax

from nfnet.command_line import run_main
from train.run import processes


@jax.jit
def compiles_for_minutes(x):
  for i in range(2000):
    x = jax.numpy.sin(x @ x * i)
  return x


def main(arguments):
  with processes.joined():
    print("joined", flush=True)
    compiles_for_minutes(jax.numpy.ones((3, 3))).block_until_ready()


run_main(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start-up", "compilation"])
def test_the_others_end_in_one_line_when_process_0_is_stopped(moment):
  port = free_port()

  def start_one(index):
    return subprocess.Popen(
      [
        *(sys.executable, "-c", RUN_THAT_WAITS, f"--coordinator=localhost:{port}"),
        *("--process_count=3", f"--process_index={index}"),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )

  # At the start, they wait for a third one.
  processes = [start_one(i) for i in range(2 if moment == "start-up" else 3)]
  if moment == "start-up":
    wait_for(lambda: is_listening(port), *processes)
    time.sleep(5)
  else:
    for process in processes:
      assert process.stdout.readline() == "joined\n"
  processes[0].send_signal(signal.SIGSTOP)
  started_seconds = time.monotonic()
  outputs = [process.communicate(timeout=120)[1].splitlines() for process in processes[1:]]
  assert time.monotonic() - started_seconds < 60
  processes[0].kill()
  processes[0].communicate()
  for process, output in zip(processes[1:], outputs, strict=True):
    assert process.returncode == EXIT_LOST_PROCESS
    assert [line for line in output if not line.startswith("[Gloo]")] == [output[-1]]
    assert "process 0, which coordinates, has been silent for 30 s; start all" in output[-1]


RUN_THAT_ENDS = """
import sys
import time

import jax

from nfnet.command_line import run_main
from train.run import processes
from train.run.termination import Terminated


def main(arguments):
  with processes.joined():
    print("joined", flush=True)
    if str(jax.process_index()) in arguments[1]:
      time.sleep(float(arguments[2]))
    if arguments[3] == "terminated":
      raise Terminated


run_main(main)
"""


def start_four_that_end(late, seconds, end):
  """Starts four processes and waits until they have found each other.

  Those whose indices are in `late` come to their end later than the others.
  """
  port = free_port()
  started = [
    subprocess.Popen(
      [
        *(sys.executable, "-c", RUN_THAT_ENDS, f"--coordinator=localhost:{port}"),
        *("--process_count=4", f"--process_index={i}", late, str(seconds), end),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    for i in range(4)
  ]
  for process in started:
    assert process.stdout.readline() == "joined\n"
  return started


@pytest.mark.slow
@pytest.mark.parametrize(
  ("victims", "end"),
  [
    ({0: signal.SIGSTOP}, "done"),
    ({0: signal.SIGSTOP}, "terminated"),
    ({0: signal.SIGKILL}, "done"),
    ({1: signal.SIGSTOP}, "done"),
    ({1: signal.SIGSTOP}, "terminated"),
    ({1: signal.SIGKILL}, "done"),
    ({1: signal.SIGSTOP, 3: signal.SIGKILL}, "done"),
    ({0: signal.SIGSTOP, 3: signal.SIGKILL}, "done"),
  ],
  ids=str,
)
def test_at_their_end_the_others_do_not_wait_for_a_process_that_is_silent(victims, end):
  processes = start_four_that_end("".join(map(str, victims)), 200, end)
  # By then, the others wait for them at their end.
  time.sleep(5)
  assert all(process.poll() is None for process in processes)
  for victim, number in victims.items():
    processes[victim].send_signal(number)
  started_seconds = time.monotonic()
  others = [process for i, process in enumerate(processes) if i not in victims]
  outputs = [process.communicate(timeout=120)[1].splitlines() for process in others]
  assert time.monotonic() - started_seconds < 60
  for victim in victims:
    processes[victim].kill()
    processes[victim].communicate()
  for process, output in zip(others, outputs, strict=True):
    if victims.get(0) == signal.SIGKILL:
      assert process.returncode == -signal.SIGABRT
    else:
      assert process.returncode == EXIT_LOST_PROCESS
      (line,) = (line for line in output if not line.startswith("[Gloo]"))
      assert any(f"process {victim}" in line for victim in victims)
      assert "silent for 3" in line


@pytest.mark.slow
@pytest.mark.parametrize("late", ["0", "1"])
@pytest.mark.parametrize(("end", "code"), [("done", 0), ("terminated", EXIT_TERMINATED)])
def test_at_their_end_processes_wait_for_one_that_has_more_to_do(late, end, code):
  processes = start_four_that_end(late, 45, end)
  outputs = [process.communicate(timeout=120)[1].splitlines() for process in processes]
  assert [process.returncode for process in processes] == [code] * 4
  assert [line for output in outputs for line in output if not line.startswith("[Gloo]")] == []


@pytest.mark.slow
def test_all_stop_at_one_step_when_one_of_them_is_terminated(one_process, dataset, tmp_path):
  workdir = tmp_path / "run"
  # So long that the notice, which JAX looks for once a second, comes before the end.
  long = {"schedule.train_steps": 200, "schedule.log_every_steps": 1}
  processes = start(workdir, dataset, 2, **long)
  metrics = workdir / "metrics.jsonl"
  wait_for(lambda: metrics.exists() and len(read_metrics(str(workdir))) > 4, *processes)
  processes[1].send_signal(signal.SIGTERM)
  assert [process.wait(timeout=60) for process in processes] == [EXIT_TERMINATED] * 2
  last = audit(str(workdir)).steps
  assert last < 200
  assert (workdir / "checkpoints" / str(last)).is_dir()
  # No step is done again.
  finish(start(workdir, dataset, 2, **long))
  found = audit(str(workdir))
  assert (found.steps, found.starts, found.repeated_steps) == (200, 2, 0)


@pytest.mark.slow
def test_evaluation_by_two_processes_is_that_of_the_run(one_process, tmp_path):
  scores = tmp_path / "scores.json"
  command = [sys.executable, "-m", "tests.train.small_network", "train.evaluate"]
  command += [f"--workdir={one_process}", f"--json={scores}", "--process_count=2"]
  command += [f"--coordinator=localhost:{free_port()}"]
  both = [
    subprocess.Popen(
      [*command, f"--process_index={i}"],
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": XLA_FLAGS},
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  first, second = (process.communicate(timeout=300)[0] for process in both)
  assert "moving average" in first
  assert "moving average" not in second
  recorded = {r["ema"]: r for r in read_metrics(one_process) if r["kind"] == "evaluation"}
  evaluations = json.loads(scores.read_text())["evaluations"]
  assert [one["network"] for one in evaluations] == ["moving average", "parameters"]
  for evaluation, is_ema in zip(evaluations, (True, False), strict=True):
    assert evaluation["examples"] == 3
    for name in ("loss", "top1"):
      assert evaluation[name] == pytest.approx(recorded[is_ema][name], rel=1e-4)


@pytest.mark.parametrize(
  ("told", "message"),
  [
    ({"coordinator": "localhost:1"}, "all three, anywhere else"),
    ({"multi_host": True, "process_count": 2}, "give --multi_host on a TPU slice, or"),
    (
      {"coordinator": "localhost:1", "process_count": 2, "process_index": 2},
      "--process_index=2 is not one of --process_count=2 processes",
    ),
  ],
)
def test_flags_that_do_not_fit_together_are_one_line(told, message):
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**told), pytest.raises(UserError) as error, joined():
    pass
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(("error", "code"), [(RuntimeError, EXIT_LOST_PROCESS), (ValueError, 2)])
def test_a_host_that_is_not_there_yet_is_worth_another_start(error, code, monkeypatch, capsys):
  def initialize(*_, **__):
    raise error("Failed to recognize coordinator address x\nmore")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  flags.FLAGS.mark_as_parsed()
  told = flagsaver.flagsaver(multi_host=True)
  with told, pytest.raises((SystemExit, UserError)) as raised, joined():
    pass
  if code == EXIT_LOST_PROCESS:
    assert raised.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Failed to recognize coordinator address x; start all of them again")
  else:
    assert str(raised.value).endswith("cannot be joined: Failed to recognize coordinator address x")
