"""The training loop, the same for pre-training and fine-tuning."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from train.config.config_file import to_json, validate
from train.config.experiment import Experiment
from train.data import pipeline
from train.data.batch_fetcher import BatchFetcher
from train.report.run_plots import write_plots
from train.report.run_summary import summary
from train.run import processes
from train.run.checkpoints import Checkpoints
from train.run.evaluation import evaluate
from train.run.progress import ProgressLine
from train.run.records import goodput
from train.run.records.goodput import Ledger
from train.run.records.id_log import IdLog
from train.run.records.metrics import MetricsWriter, read_metrics
from train.run.tally import Counts, Tally
from train.run.termination import Terminated, Termination
from train.step.evaluation_step import make_evaluation_step
from train.step.model import make_model
from train.step.optimizer import SGDAGCState, make_optimizer
from train.step.parameter_groups import parameter_roles
from train.step.schedule import learning_rate_schedule, train_steps
from train.step.sharding.batch import check_batch_size, check_train_batch, put_batch
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import put_parameters
from train.step.state import TrainState, abstract_state, initial_state, skip_step
from train.step.train_step import make_train_step

STEPS_AHEAD = 2
"""Steps that are started before an earlier one is known to be over: the devices never wait."""


def train(
  experiment: Experiment,
  workdir: str,
  *,
  initial: Callable[[], Any] | None = None,
  began_seconds: float | None = None,
) -> list[dict[str, Any]]:
  """Trains until the schedule's end, resuming from the newest checkpoint in `workdir`.

  Leaves in `workdir`: checkpoints, metrics.jsonl, TensorBoard event files, plots, the record of all
  images (`train.audit_data`) and of where the time went (`train.goodput`). Where several processes
  train together, all have the same `workdir`.

  Args:
    experiment: what to train.
    workdir: folder of the run; created if needed.
    initial: gives the parameters to start from, nested dictionaries; None draws them from the
      seed. Not called when the run resumes.
    began_seconds: `time.monotonic()` when start-up began; None is now.

  Returns:
    The records of metrics.jsonl; none but in the first process.

  Raises:
    UserError: what the person who started it can mend.
    Terminated: after SIGTERM, when a checkpoint is saved.
  """
  validate(experiment)
  if "://" in workdir:
    # It would become a folder of that name on each host.
    raise UserError(f"workdir {workdir!r}: not a folder; mount the bucket and give its path")
  with contextlib.ExitStack() as opened:
    run = _Run(experiment, workdir, began_seconds, opened)
    while not run.is_over:
      run.go_on(initial)
  if not processes.is_first():
    return []
  records = read_metrics(workdir)
  plots = write_plots(records, workdir, title=experiment.name)
  time_spent = goodput.read_goodput(workdir)
  print(summary(records, {"experiment": experiment.name, "workdir": workdir}))
  print(goodput.as_text(time_spent))
  print(f"plots: {', '.join(str(plot) for plot in plots)}")
  return records


class _Run:
  """One start of a run.

  Attributes:
    is_over: the last step is done, evaluated and saved.
  """

  def __init__(
    self,
    experiment: Experiment,
    workdir: str,
    began_seconds: float | None,
    opened: contextlib.ExitStack,
  ):
    self.is_over = False
    self._experiment = experiment
    self._workdir = workdir
    self._termination = opened.enter_context(Termination())
    ledger = Ledger(workdir if processes.is_first() else None, began_seconds=began_seconds)
    self._ledger = opened.enter_context(ledger)
    self._mesh = make_mesh(parameter_shards=experiment.parallelism.parameter_shards)
    check_train_batch(experiment, self._mesh)
    check_batch_size(
      "data.evaluation_batch_size", experiment.data.evaluation_batch_size, self._mesh
    )
    self._train_examples = pipeline.train_examples(experiment.data)
    self._total_steps = train_steps(experiment, self._train_examples)
    self._model = make_model(experiment)
    learning_rate = learning_rate_schedule(experiment, self._train_examples)
    self._optimizer = make_optimizer(
      experiment, learning_rate, parameter_roles(self._model, self._mesh)
    )
    self._train_step = jax.jit(
      make_train_step(experiment, self._model, self._optimizer, learning_rate, self._mesh),
      donate_argnums=0,
    )
    self._is_compiled = False
    self._skip_step = jax.jit(skip_step, donate_argnums=0)
    self._is_finite = jax.jit(_is_finite)
    self._evaluation_step = jax.jit(make_evaluation_step(self._model, experiment.loss, self._mesh))
    self._metadata = {
      "experiment": to_json(experiment),
      "class_names": list(pipeline.class_names(experiment.data)),
      "num_classes": experiment.data.num_classes,
    }
    self._left_out: set[tuple[int, int]] = set()
    self._roll_backs = 0
    self._events: list[str] = []
    self._batches = opened.enter_context(
      pipeline.train_batches(
        experiment.data,
        experiment.seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
      )
    )
    self._first_data_state = self._batches.get_state()
    self._checkpoints = opened.enter_context(
      Checkpoints(workdir, keep=experiment.schedule.checkpoints_kept)
    )

  def go_on(self, initial: Callable[[], Any] | None) -> None:
    """From the newest checkpoint, or the beginning, until the end or until the run rolls back."""
    start = self._start_or_resume(initial)
    self._ledger.goes_on_from(start.step)
    with (
      IdLog(
        self._workdir,
        start=_same_in_all_processes(time.time_ns()),
        process=jax.process_index(),
        processes=jax.process_count(),
        order={
          "seed": self._experiment.seed,
          "examples": self._train_examples,
          "batch_size": self._experiment.data.batch_size,
          "repetitions": self._experiment.data.repetitions,
        },
      ) as ids,
      _Reports(self._workdir, self._total_steps, start) as reports,
    ):
      for text in (*start.events, *self._events):
        reports.event(start.step, text)
      self._events.clear()
      reports.message(self._describe(start.step))
      self._ledger.begin_steps()
      try:
        self._continue_from(start, ids, reports)
      except _RollBackError as roll_back:
        # Written when the records of what is done again are gone.
        self._events.append(str(roll_back))
      else:
        self.is_over = True

  def _describe(self, step: int) -> str:
    """One line for the person who started the run."""
    experiment = self._experiment
    start = f"resuming after step {step}" if step else "starting"
    return (
      f"{experiment.name}: NFNet-{experiment.model.variant}, {self._train_examples} images, "
      f"{self._total_steps} steps of {experiment.data.batch_size} on {self._mesh.size} "
      f"{jax.devices()[0].device_kind} device(s); {start}; compiling"
    )

  def _start_or_resume(self, initial: Callable[[], Any] | None) -> "_Start":
    abstract = abstract_state(self._experiment, self._model, self._optimizer, self._mesh)
    if self._checkpoints.latest_step() is None:
      if initial is None:
        parameters = initial_parameters(self._model, self._experiment.seed)
      else:
        parameters = initial()
      on_devices = put_parameters(self._model, parameters, self._mesh)
      state = initial_state(self._experiment, self._optimizer, on_devices)
      # The count of steps is on one device; left there, the second step would be compiled anew.
      shardings = jax.tree.map(lambda x: x.sharding, abstract)
      self._batches.set_state(self._first_data_state)
      return _Start(
        state=jax.device_put(state, shardings), step=0, data_state=self._first_data_state
      )
    restored = self._checkpoints.restore(
      params=abstract.parameters,
      ema=abstract.ema,
      optimizer=abstract.optimizer._asdict(),
      experiment=self._experiment,
    )
    self._batches.set_state(restored.data_state)
    self._left_out |= {tuple(steps) for steps in restored.metadata["left_out"]}
    return _Start(
      state=TrainState(restored.params, SGDAGCState(**restored.optimizer), restored.ema),
      step=restored.step,
      data_state=restored.data_state,
      counts=Counts(**restored.metadata["counts"]),
      owes_evaluation=restored.metadata["owes_evaluation"],
      events=tuple(
        f"checkpoint of step {step} was damaged and set aside" for step in restored.set_aside
      ),
    )

  def _continue_from(self, start: "_Start", ids: IdLog, reports: "_Reports") -> None:
    """Steps, progress lines, evaluations and checkpoints until the end."""
    schedule = self._experiment.schedule
    ledger, termination = self._ledger, self._termination
    state, step, data_state = start.state, start.step, start.data_state
    tally = Tally(self._experiment.data.batch_size, start.counts)

    def save(*, metrics: Mapping[str, float] | None = None, owes_evaluation: bool = False) -> None:
      with ledger.phase(goodput.CHECKPOINT):
        ids.flush()
        ledger.write()
        self._check_finite(state, step)
        self._checkpoints.save(
          step,
          params=state.parameters,
          ema=state.ema,
          optimizer=state.optimizer._asdict(),
          data_state=data_state,
          metadata={
            **self._metadata,
            "counts": dataclasses.asdict(tally.counts),
            "left_out": sorted(self._left_out),
            "owes_evaluation": owes_evaluation,
          },
          metrics=metrics,
        )

    def terminate(*, owes_evaluation: bool = False) -> NoReturn:
      self._settle(tally, reports, running_max=0)
      if step > (self._checkpoints.latest_step() or 0):
        save(owes_evaluation=owes_evaluation)
        with ledger.phase(goodput.CHECKPOINT):
          self._checkpoints.wait()
      reports.message(
        f"terminated after step {step}, of which there is a checkpoint; the same command goes on"
        if step
        else "terminated before the first step"
      )
      raise Terminated

    if start.owes_evaluation and self._evaluate(state, step, reports) is None:
      terminate(owes_evaluation=True)
    with BatchFetcher(self._batches) as fetcher:
      while step < self._total_steps:
        started_seconds = time.monotonic()
        with ledger.phase(goodput.DATA_WAIT):
          fetched = fetcher.next(termination.is_due_alone)
        tally.waited(time.monotonic() - started_seconds)
        if fetched is None:
          terminate()
        step += 1
        data_state = fetched.state_after
        is_left_out = any(first <= step <= last for first, last in self._left_out)
        ids.append(step, fetched.batch, left_out=is_left_out)
        if is_left_out:
          state = self._skip_step(state)
        else:
          with ledger.phase(goodput.STEP if self._is_compiled else goodput.COMPILE):
            state, metrics = self._train_step(state, put_batch(fetched.batch, self._mesh))
          self._is_compiled = True
          tally.add(step, metrics)
        ledger.step_done(step)
        self._settle(tally, reports, running_max=STEPS_AHEAD)

        is_last = step == self._total_steps
        saves = is_last or _is_due(step, schedule.checkpoint_every_steps)
        evaluates = is_last or _is_due(step, schedule.evaluate_every_steps)
        if saves or evaluates or step % schedule.log_every_steps == 0:
          self._settle(tally, reports, running_max=0)
          reports.training({"step": step, "kind": "train", **tally.close_window()})
        if termination.is_due():
          terminate(owes_evaluation=evaluates)
        results = None
        if evaluates:
          results = self._evaluate(state, step, reports)
          if results is None:
            terminate(owes_evaluation=True)
        if saves:
          save(metrics=results)
        if saves or evaluates:
          tally.restart_clock()
    with ledger.phase(goodput.CHECKPOINT):
      self._checkpoints.wait()

  def _settle(self, tally: Tally, reports: "_Reports", *, running_max: int) -> None:
    """Looks at the steps that are over: bad steps, bad images.

    Raises:
      UserError: the run stops.
      _RollBackError: the run is to go on from an earlier checkpoint.
    """
    faults = self._experiment.faults
    for bad in tally.settle(running_max=running_max):
      if not bad.is_skipped:
        # What comes of leaving it out is what skipping it would have left.
        self._roll_back(bad.step, bad.step, 0, f"the gradient of step {bad.step} is not finite")
      reports.event(bad.step, f"step {bad.step} was skipped: loss {bad.loss:.4g}")
      skipped = tally.skipped_in_a_row
      if len(skipped) == faults.skipped_in_a_row_max:
        first, last = skipped[0], skipped[-1]
        reason = (
          f"{len(skipped)} steps in a row were skipped, from step {first.step} (loss "
          f"{first.loss:.4g}) to {last.step} (loss {last.loss:.4g})"
        )
        if faults.then == "stop":
          self._stop(f"{reason}, and faults.then='stop'")
        self._roll_back(first.step, last.step, faults.roll_back_steps, reason)
    self._batches.check_bad_images(tally.counts.bad_images, tally.counts.images)

  def _roll_back(self, first: int, last: int, steps_before: int, reason: str) -> NoReturn:
    """To a checkpoint before the first bad step; so many before it are left out as well."""
    if self._roll_backs == self._experiment.faults.roll_backs_max:
      self._stop(f"{reason}, after faults.roll_backs_max={self._roll_backs} earlier roll-backs")
    self._roll_backs += 1
    earlier = [step for step in self._checkpoints.all_steps() if step < first]
    early_enough = [step for step in earlier if step < first - steps_before]
    target = max(early_enough) if early_enough else min(earlier, default=0)
    left_out = max(target + 1, first - steps_before), last
    self._left_out.add(left_out)
    self._checkpoints.delete_after(target)
    raise _RollBackError(
      f"{reason}: back to step {target}, and on without the batches of steps {left_out[0]} to "
      f"{left_out[1]}",
    )

  def _stop(self, reason: str) -> NoReturn:
    raise UserError(
      f"{reason}; the newest checkpoint is of step {self._checkpoints.latest_step()}; lower "
      f"optimizer.peak_learning_rate={self._experiment.optimizer.peak_learning_rate:g} or "
      "optimizer.agc_clipping"
    )

  def _check_finite(self, state: TrainState, step: int) -> None:
    """Nothing that is not finite is ever saved."""
    if not bool(self._is_finite(state)):
      self._stop(f"the state after step {step} is not finite and was not saved")

  def _evaluate(self, state: TrainState, step: int, reports: "_Reports") -> dict[str, float] | None:
    """Writes one record for each kind of parameters; returns what ranks checkpoints.

    None if the run is to be terminated.
    """
    networks = {False: state.parameters}
    if state.ema is not None:
      networks[True] = state.ema
    with self._ledger.phase(goodput.EVALUATION):
      for is_ema, parameters in networks.items():
        scores = evaluate(
          self._evaluation_step,
          parameters,
          self._experiment.data,
          self._mesh,
          is_interrupted=self._termination.is_due,
        )
        if scores is None:
          return None
        record = {"step": step, "kind": "evaluation", "ema": is_ema, **scores.scalars()}
        reports.evaluation(record)
    # Of the network that is used later: the moving average where there is one.
    return {"evaluation_top1": scores.top1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Start:
  """What a run goes on from.

  Attributes:
    state: after `step`.
    step: steps done.
    data_state: of the iterator behind the batch of that step.
    counts: until there.
    owes_evaluation: it was terminated before or in the evaluation of this step.
    events: that led here.
  """

  state: TrainState
  step: int
  data_state: dict[str, Any]
  counts: Counts = dataclasses.field(default_factory=Counts)
  owes_evaluation: bool = False
  events: tuple[str, ...] = ()


class _RollBackError(Exception):
  """The run is to go on from its newest checkpoint; the text says why."""


def _is_finite(state: TrainState) -> jax.Array:
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))


def _same_in_all_processes(number: int) -> int:
  """That of the first process."""
  # JAX has no 64-bit integers here.
  halves = np.array([number >> 32, number & 0xFFFFFFFF], np.uint32)
  high, low = multihost_utils.broadcast_one_to_all(halves)
  return int(high) << 32 | int(low)


class _Reports:
  """Metrics and the progress line, both by the first process only. Use as a context manager."""

  def __init__(self, workdir: str, total_steps: int, start: _Start):
    self._open = contextlib.ExitStack()
    if processes.is_first():
      self._metrics = MetricsWriter(
        workdir, restored_step=start.step or None, evaluates_again=start.owes_evaluation
      )
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

  def event(self, step: int, text: str) -> None:
    """Something out of the ordinary: a line, and a record in metrics.jsonl."""
    if processes.is_first():
      self._metrics.write({"step": step, "kind": "event", "text": text})
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


def _is_due(step: int, every_steps: int | None) -> bool:
  return every_steps is not None and step % every_steps == 0
