"""Starts runs of the training program as processes that can be killed, and looks at them."""

import contextlib
import hashlib
import json
import os
import pathlib
import socket

import jax

from nfnet.weights.checkpoint_reader import read_arrays
from tests import commands
from tests.quick_compilation import XLA_FLAGS
from train.run.records.goodput import LEDGER_FILE, START_UP

CONFIG = "tests/train/small_network.py"
FIELDS = {
  "data.num_classes": 10,
  "data.batch_size": 16,
  "data.rand_augment_layers": 2,
  "data.repetitions": 2,
  "mixing.mixup_alpha": 0.2,
  "mixing.cutmix": "true",
  "model.dropout_rate": 0.1,
  "model.stochastic_depth_rate": 0.1,
  "optimizer.warmup_steps": 3,
  "optimizer.ema_decay": 0.9,
  "schedule.train_epochs": "none",
  "schedule.train_steps": 24,
  "schedule.log_every_steps": 1,
  # Little between what can be interrupted: a checkpoint or an evaluation every few steps.
  "schedule.evaluate_every_steps": 6,
  "schedule.checkpoint_every_steps": 3,
}
STEPS = FIELDS["schedule.train_steps"]


def start(workdir, data, log, *, session=False, flags=(), **fields):
  """Starts or resumes a run on one device; programs come from the cache that all tests share.

  With `session`, it leads a process group, as a shell's jobs do. `flags` are further arguments.
  """
  fields = {**FIELDS, "data.path": data, **fields}
  arguments = [f"--config={CONFIG}", f"--workdir={workdir}"]
  arguments += [*(f"--config.{field}={x}" for field, x in fields.items()), *flags]
  with pathlib.Path(log).open("a") as file:
    return commands.start(
      "train.pretrain",
      *arguments,
      log=file,
      environment={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": XLA_FLAGS},
      session=session,
    )


def final_sha256(workdir):
  """Returns the newest checkpoint's step and a hash of parameters, momentum, average and step."""
  newest = max((pathlib.Path(workdir) / "checkpoints").iterdir(), key=lambda path: int(path.name))
  digest = hashlib.sha256()
  for item in ("params", "optimizer", "ema"):
    for path, leaf in jax.tree.leaves_with_path(read_arrays(newest / item)):
      digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
  return newest.name, digest.hexdigest()


def last_phases(workdir):
  """Returns the phases of the last second or so of a run's ledger; none before there is one."""
  try:
    line = (pathlib.Path(workdir) / LEDGER_FILE).read_text().splitlines()[-1]
    return tuple(json.loads(line).get("seconds", {START_UP: 0}))
  except (OSError, IndexError, ValueError):
    return ()


def is_saving(workdir):
  """Returns whether a checkpoint is being written, or was when the run died."""
  return any("tmp" in path.name for path in workdir.glob("checkpoints/*"))


def is_evaluating(workdir):
  """Returns whether an evaluation is going on.

  It begins after its step's record; the second record, of the average, ends it.
  """
  try:
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  except (OSError, IndexError, ValueError):
    return False
  if last["kind"] == "train":
    return last["step"] % FIELDS["schedule.evaluate_every_steps"] == 0
  return last["kind"] == "evaluation" and not last["ema"]


def free_port():
  """Returns a port on which process 0 of several can listen."""
  with socket.socket() as some:
    some.bind(("localhost", 0))
    return some.getsockname()[1]


def is_listening(port):
  """Returns whether a process takes connections on a port of this machine."""
  try:
    socket.create_connection(("localhost", port)).close()
  except OSError:
    return False
  return True


def send(pid, signal_number):
  """Sends a signal to a process that may be gone."""
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal_number)
