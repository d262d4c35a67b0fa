"""The training loop, the same for pre-training and fine-tuning."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from train import data, processes
from train.checkpoint import Checkpoints
from train.config_file import to_json, validate
from train.devices import check_batch_size, put_batch
from train.evaluation import evaluate
from train.experiment import Experiment
from train.metrics import MetricsWriter, read_metrics
from train.optimizer import SGDAGCState
from train.plots import write_plots
from train.progress import ProgressLine, summary
from train.schedule import learning_rate_schedule, train_steps
from train.sharding import make_mesh
from train.state import TrainState
from train.step import (
  abstract_state,
  initial_state,
  make_evaluation_step,
  make_model,
  make_optimizer,
  make_train_step,
  put_parameters,
)


def train(
  experiment: Experiment, workdir: str, *, initial: Callable[[], Any] | None = None
) -> list[dict[str, Any]]:
  """Trains until the schedule's end, resuming from the newest checkpoint in `workdir`.

  Leaves in `workdir`: checkpoints, metrics.jsonl, TensorBoard event files and plots. Where several
  processes train together, all have the same `workdir`.

  Args:
    experiment: what to train.
    workdir: folder of the run; created if needed.
    initial: gives the parameters to start from, nested dictionaries; None draws them from the
      seed. Not called when the run resumes.

  Returns:
    The records of metrics.jsonl; none but in the first process.

  Raises:
    UserError: what the person who started it can mend.
  """
  validate(experiment)
  run = _Run(experiment, workdir)
  with (
    data.train_batches(
      experiment.data,
      experiment.seed,
      shard_index=jax.process_index(),
      shard_count=jax.process_count(),
    ) as batches,
    Checkpoints(workdir, keep=experiment.schedule.checkpoints_kept) as checkpoints,
  ):
    state, step = run.start_or_resume(checkpoints, batches, initial)
    with _Reports(workdir, run.total_steps, step) as reports:
      reports.message(run.describe(step))
      run.continue_from(state, step, batches, checkpoints, reports)
  if not processes.is_first():
    return []
  records = read_metrics(workdir)
  plots = write_plots(workdir, title=experiment.name)
  print(summary(records, {"experiment": experiment.name, "workdir": workdir}))
  print(f"plots: {', '.join(str(plot) for plot in plots)}")
  return records


class _Run:
  """What stays the same from the first step to the last."""

  def __init__(self, experiment: Experiment, workdir: str):
    self.experiment = experiment
    self.workdir = workdir
    self.mesh = make_mesh(parameter_shards=experiment.parallelism.parameter_shards)
    check_batch_size(
      "data.batch_size",
      experiment.data.batch_size,
      self.mesh,
      parts=experiment.optimizer.gradient_accumulation,
    )
    check_batch_size("data.evaluation_batch_size", experiment.data.evaluation_batch_size, self.mesh)
    self.train_examples = data.train_examples(experiment.data)
    self.total_steps = train_steps(experiment, self.train_examples)
    self.model = make_model(experiment)
    learning_rate = learning_rate_schedule(experiment, self.train_examples)
    self.optimizer = make_optimizer(experiment, learning_rate)
    self.train_step = jax.jit(
      make_train_step(experiment, self.model, self.optimizer, learning_rate, self.mesh),
      donate_argnums=0,
    )
    self.evaluation_step = jax.jit(make_evaluation_step(self.model, experiment.loss, self.mesh))
    self.metadata = {
      "experiment": to_json(experiment),
      "class_names": list(data.class_names(experiment.data)),
      "num_classes": experiment.data.num_classes,
    }

  def describe(self, step: int) -> str:
    """One line for the person who started the run."""
    experiment = self.experiment
    start = f"resuming after step {step}" if step else "starting"
    return (
      f"{experiment.name}: NFNet-{experiment.model.variant}, {self.train_examples} images, "
      f"{self.total_steps} steps of {experiment.data.batch_size} on {self.mesh.size} "
      f"{jax.devices()[0].device_kind} device(s); {start}; compiling"
    )

  def start_or_resume(
    self,
    checkpoints: Checkpoints,
    batches: data.Batches,
    initial: Callable[[], Any] | None,
  ) -> tuple[TrainState, int]:
    """The state to go on from and its step."""
    if checkpoints.latest_step() is None:
      if initial is None:
        parameters = initial_parameters(self.model, self.experiment.seed)
      else:
        parameters = initial()
      on_devices = put_parameters(self.model, parameters, self.mesh)
      return initial_state(self.experiment, self.optimizer, on_devices), 0
    abstract = abstract_state(self.experiment, self.model, self.optimizer, self.mesh)
    restored = checkpoints.restore(
      params=abstract.parameters,
      ema=abstract.average,
      optimizer=abstract.optimizer._asdict(),
      experiment=self.experiment,
    )
    batches.set_state(restored.data_state)
    state = TrainState(restored.params, SGDAGCState(**restored.optimizer), restored.ema)
    return state, restored.step

  def continue_from(
    self,
    state: TrainState,
    step: int,
    batches: data.Batches,
    checkpoints: Checkpoints,
    reports: "_Reports",
  ) -> None:
    """Steps, progress lines, evaluations and checkpoints until the end."""
    schedule = self.experiment.schedule
    window = _Window()
    while step < self.total_steps:
      batch = window.next(batches)
      state, step_metrics = self.train_step(state, put_batch(batch, self.mesh))
      step += 1
      window.add(step_metrics)
      is_last = step == self.total_steps
      saves = is_last or _is_due(step, schedule.checkpoint_every_steps)
      evaluates = is_last or _is_due(step, schedule.evaluate_every_steps)
      if saves or evaluates or step % schedule.log_every_steps == 0:
        record = {"step": step, "kind": "train", **window.close()}
        self._check_finite(record, checkpoints)
        reports.training(record)
      results = self._evaluate(state, step, reports) if evaluates else None
      if saves:
        checkpoints.save(
          step,
          params=state.parameters,
          ema=state.average,
          optimizer=state.optimizer._asdict(),
          data_state=batches.get_state(),
          metadata=self.metadata,
          metrics=results,
        )
      if saves or evaluates:
        window.restart_clock()

  def _evaluate(self, state: TrainState, step: int, reports: "_Reports") -> dict[str, float]:
    """Writes one record for each kind of parameters; returns what ranks checkpoints."""
    networks = {False: state.parameters}
    if state.average is not None:
      networks[True] = state.average
    for is_average, parameters in networks.items():
      result = evaluate(self.evaluation_step, parameters, self.experiment.data, self.mesh)
      record = {"step": step, "kind": "evaluation", "ema": is_average, **result}
      reports.evaluation(record)
    # Of the network that is used later: the moving average where there is one.
    return {"evaluation_top1": result["top1"]}

  def _check_finite(self, record: dict[str, Any], checkpoints: Checkpoints) -> None:
    if math.isfinite(record["loss"]) and math.isfinite(record["gradient_norm"]):
      return
    raise UserError(
      f"loss {record['loss']} and gradient norm {record['gradient_norm']} at step "
      f"{record['step']} are not both finite; the newest checkpoint is of step "
      f"{checkpoints.latest_step()}; lower optimizer.peak_learning_rate="
      f"{self.experiment.optimizer.peak_learning_rate:g} or optimizer.agc_clipping"
    )


class _Reports:
  """Metrics and the progress line, both by the first process only. Use as a context manager."""

  def __init__(self, workdir: str, total_steps: int, restored_step: int):
    self._open = contextlib.ExitStack()
    if processes.is_first():
      self._metrics = MetricsWriter(workdir, restored_step=restored_step or None)
      self._open.enter_context(self._metrics)
      self._progress = self._open.enter_context(ProgressLine(total_steps))

  def __enter__(self) -> "_Reports":
    return self

  def __exit__(self, *unused_exception) -> None:
    self._open.close()

  def message(self, text: str) -> None:
    """A line for the person who started the run."""
    if processes.is_first():
      self._progress.message(text)

  def training(self, record: dict[str, Any]) -> None:
    """Of some steps."""
    if processes.is_first():
      self._metrics.write(record)
      self._progress.update(record)

  def evaluation(self, record: dict[str, Any]) -> None:
    """Of one kind of parameters."""
    if processes.is_first():
      self._metrics.write(record)
      self._progress.evaluation(record)


class _Window:
  """The steps between two records: their mean metrics, their speed, their waiting for data."""

  def __init__(self):
    self._steps: list[dict[str, Any]] = []
    self.restart_clock()

  def restart_clock(self) -> None:
    """Leaves out what was neither a step nor waiting for data."""
    self._started_seconds = time.monotonic()
    self._waited_seconds = 0.0

  def next(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The next batch; counts the time it takes to come."""
    started_seconds = time.monotonic()
    batch = next(batches)
    self._waited_seconds += time.monotonic() - started_seconds
    return batch

  def add(self, step_metrics: dict[str, Any]) -> None:
    """Metrics of a step, which may still be running."""
    self._steps.append(step_metrics)

  def close(self) -> dict[str, float]:
    """Waits for the steps, returns their record and begins the next window."""
    steps = jax.device_get(self._steps)
    seconds = time.monotonic() - self._started_seconds
    examples = float(sum(step["examples"] for step in steps))
    record = {
      "loss": float(np.mean([step["loss"] for step in steps])),
      "top1": float(np.mean([step["top1"] for step in steps])),
      "gradient_norm": float(np.mean([step["gradient_norm"] for step in steps])),
      "learning_rate": float(steps[-1]["learning_rate"]),
      "images_per_second": examples / seconds,
      "data_wait_share": self._waited_seconds / seconds,
    }
    self._steps = []
    self.restart_clock()
    return record


def _is_due(step: int, every_steps: int | None) -> bool:
  return every_steps is not None and step % every_steps == 0
