"""The training loop, the same for pre-training and fine-tuning.

`train` does a run from start to end. `_train_from` is the loop over steps, from the beginning or
from a checkpoint. `train.run.faults` decides about bad steps, `train.run.resume` determines where
to continue and what a checkpoint holds, and `train.run.reports` writes the metrics and the progress
line.
"""

import contextlib
import dataclasses
import os
import queue
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import logging

from nfnet.errors import UserError, format_count
from nfnet.system.paths import path_or_bucket
from train.config.experiment import Experiment
from train.config.json_conversion import to_json
from train.config.validation import validate
from train.data import dataset
from train.data.batch_workers.deaths import TooManyDeathsError, WorkerDeaths
from train.data.batches import Batches, train_batches
from train.data.prefetch import BatchFetcher
from train.report.output import importing_matplotlib
from train.report.run_summary import summary
from train.run import faults, resume
from train.run.checkpoints.manager import BEST_METRIC, Checkpoints
from train.run.evaluation import evaluate
from train.run.exit_codes import EXIT_INTERRUPTED, EXIT_LOST_PROCESS
from train.run.leases.workdir_lease import lease_on
from train.run.processes import is_first, same_in_all_processes
from train.run.records import goodput
from train.run.records.background_logger import BackgroundLogger, running_loggers
from train.run.records.goodput import Ledger
from train.run.records.id_log import IdLog, next_start
from train.run.records.loggers import MakeLogger
from train.run.records.loggers import Run as LoggedRun
from train.run.records.metrics import is_evaluated, read_metrics
from train.run.records.staging import Books, books_of
from train.run.records.workdir import writing_to
from train.run.reports import Reports
from train.run.resume import Position
from train.run.tally import Tally
from train.run.termination import Terminated, Termination
from train.step.evaluation_step import make_evaluation_step
from train.step.model import make_model
from train.step.optimizer import make_optimizer
from train.step.parameter_groups import parameter_roles
from train.step.schedule import learning_rate_schedule, train_steps
from train.step.sharding.batch import check_batch_size, check_train_batch, put_batch
from train.step.sharding.mesh import make_mesh
from train.step.state import abstract_state, skip_step
from train.step.train_step import make_train_step

STEPS_AHEAD = 2
"""Number of steps that may run before the host waits for one to end, so that devices never idle."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
  """Holds what stays the same while a run goes on, whether it rolls back or not.

  Attributes:
    experiment: experiment that is trained.
    books: folder for the records of the run.
    mesh: mesh of devices.
    train_examples: number of images of the training split.
    total_steps: number of steps of the whole run.
    metadata: JSON about the experiment that goes into each checkpoint.
    train_step: what `train.step.train_step.make_train_step` returns.
    skip_step: jitted `train.step.state.skip_step`; donates the state.
    evaluation_step: jitted `train.step.evaluation_step.make_evaluation_step`.
    is_finite: jitted `train.run.faults.is_finite`.
    batches: this process's share of the training batches.
    checkpoints: checkpoints of the run.
    ledger: record of where the time goes.
    termination: listener for SIGTERM and Ctrl-C, which tell the run to end.
    takes_changes: whether the program can resume the run with `--accept_changes`.
    deaths: counter of data workers that were killed, for all batches of the run.
    death_reports: one sentence for each of them that was not yet recorded.
    loggers: loggers of the user, in the first process, once the run has begun.
  """

  experiment: Experiment
  books: Books
  mesh: jax.sharding.Mesh
  train_examples: int
  total_steps: int
  metadata: dict[str, Any]
  train_step: Callable[..., Any]
  skip_step: Callable[..., Any]
  evaluation_step: Callable[..., Any]
  is_finite: Callable[..., Any]
  batches: Batches
  checkpoints: Checkpoints
  ledger: Ledger
  termination: Termination
  takes_changes: bool
  deaths: WorkerDeaths
  death_reports: queue.SimpleQueue[str]
  loggers: list[BackgroundLogger]


class _RollBackError(Exception):
  """Tells the run to resume from its newest checkpoint, after the later ones were deleted."""

  def __init__(self, roll_back: faults.RollBack):
    super().__init__(roll_back.describe())
    self.roll_back = roll_back


def train(
  experiment: Experiment,
  workdir: str,
  *,
  initial: Callable[[], Any] | None = None,
  began_seconds: float | None = None,
  accepted_changes: Collection[str] | None = None,
  loggers: Mapping[str, MakeLogger] | None = None,
) -> list[dict[str, Any]]:
  """Trains until the schedule's end, resuming from the newest checkpoint in `workdir`.

  Writes to `workdir`: checkpoints, metrics.jsonl, TensorBoard event files, plots, and the records
  of all images (`train.audit_data`) and of where the time went (`train.goodput`). When several
  processes train together, all have the same `workdir`.

  Args:
    experiment: experiment to train.
    workdir: folder of the run, here or in a bucket; created if needed.
    initial: returns the parameters to start from, as nested dictionaries; None draws them from the
      seed. Not called when the run resumes.
    began_seconds: `time.monotonic()` when start-up began; None is now.
    accepted_changes: fields of `train.config.experiment.ACCEPTABLE_ON_RESUME` in which the
      experiment may differ from the one in `workdir`; None accepts none, and says that the program
      has no flag for it.
    loggers: functions that make loggers of the user, by the names that warnings give them
      (`train.run.records.loggers`). Only the first process calls them.

  Returns:
    The records of metrics.jsonl; an empty list in all processes but the first.

  Raises:
    InUseError: another run is writing into `workdir`.
    UserError: the run cannot start, or has to stop, for a reason that the user can correct.
    Terminated: after SIGTERM or Ctrl-C, or when data workers are killed again and again, once a
      checkpoint is saved.
  """
  validate(experiment)
  workdir = path_or_bucket("workdir", workdir)
  with lease_on(workdir), books_of(workdir) as books:
    return _train(
      experiment,
      workdir,
      books,
      initial=initial,
      began_seconds=began_seconds,
      accepted_changes=accepted_changes,
      loggers=loggers or {},
    )


def _train(
  experiment: Experiment,
  workdir: str,
  books: Books,
  *,
  initial: Callable[[], Any] | None,
  began_seconds: float | None,
  accepted_changes: Collection[str] | None,
  loggers: Mapping[str, MakeLogger],
) -> list[dict[str, Any]]:
  """Trains as `train` does, in a workdir that no other run writes into."""
  with contextlib.ExitStack() as opened:
    termination = opened.enter_context(Termination())
    ledger = opened.enter_context(
      Ledger(books.folder if is_first() else None, began_seconds=began_seconds)
    )
    mesh = make_mesh(parameter_shards=experiment.parallelism.parameter_shards)
    check_train_batch(experiment, mesh)
    check_batch_size("data.evaluation_batch_size", experiment.data.evaluation_batch_size, mesh)
    splits = (experiment.data.train_split, experiment.data.evaluation_split)
    dataset.check(experiment.data, *splits)
    checkpoints = opened.enter_context(
      Checkpoints(workdir, keep=experiment.schedule.checkpoints_kept)
    )
    # What does not fit is refused before a data set is copied and its classes are counted.
    class_names = dataset.class_names(experiment.data)
    checkpoints.check_experiment(experiment, accepted_changes or (), class_names)
    if initial is not None and checkpoints.latest_step() is None:
      initial = _loaded(initial)
    # An evaluation must not have to wait for its images, hours after the start.
    dataset.fetch(experiment.data, *splits)
    train_examples = dataset.train_examples(experiment.data)
    model = make_model(experiment)
    learning_rate = learning_rate_schedule(experiment, train_examples)
    optimizer = make_optimizer(experiment, learning_rate, parameter_roles(model, mesh))
    class_weights = (
      dataset.balanced_class_weights(experiment.data)
      if experiment.loss.class_weights == "balanced"
      else None
    )
    train_step = make_train_step(
      experiment, model, optimizer, learning_rate, mesh, class_weights=class_weights
    )
    like = abstract_state(experiment, model, optimizer, mesh)
    metadata = {
      "experiment": to_json(experiment),
      "class_names": list(class_names),
      "num_classes": experiment.data.num_classes,
    }
    death_reports: queue.SimpleQueue[str] = queue.SimpleQueue()
    # Only the first process has a record to put them into; the others print them.
    deaths = WorkerDeaths(experiment.data.workers, death_reports.put if is_first() else None)
    batches = opened.enter_context(
      train_batches(
        experiment.data,
        experiment.seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        deaths=deaths,
      )
    )
    first_data_state = batches.get_state()
    run = _Run(
      experiment=experiment,
      books=books,
      mesh=mesh,
      train_examples=train_examples,
      total_steps=train_steps(experiment, train_examples),
      metadata=metadata,
      train_step=train_step,
      skip_step=jax.jit(skip_step, donate_argnums=0),
      evaluation_step=jax.jit(make_evaluation_step(model, experiment.loss, mesh)),
      is_finite=jax.jit(faults.is_finite),
      batches=batches,
      checkpoints=checkpoints,
      ledger=ledger,
      termination=termination,
      takes_changes=accepted_changes is not None,
      deaths=deaths,
      death_reports=death_reports,
      loggers=[],
    )
    left_out: set[tuple[int, int]] = set()
    roll_backs: list[faults.RollBack] = []
    # Each roll-back starts another iteration.
    while True:
      events: list[str] = []
      if checkpoints.latest_step() is None:
        position = resume.start(experiment, model, optimizer, initial, like, mesh, first_data_state)
      else:
        position, events = resume.resume(
          checkpoints,
          experiment,
          like,
          accepted_changes or (),
          class_names=class_names,
        )
      batches.set_state(position.data_state)
      position.left_out |= left_out
      position.roll_backs = len(roll_backs)
      events += [roll_back.describe() for roll_back in roll_backs[-1:]]
      if is_first() and loggers and not run.loggers:
        logged = LoggedRun(
          id=checkpoints.run_name(),
          name=experiment.name,
          workdir=workdir,
          configuration=to_json(experiment),
          total_steps=run.total_steps,
          resumed_step=position.step,
        )
        run.loggers.extend(opened.enter_context(running_loggers(loggers, logged)))
      try:
        _train_from(position, run, events)
      except _RollBackError as error:
        roll_backs.append(error.roll_back)
        left_out = position.left_out | {error.roll_back.left_out}
        # Frees the position's arrays, which would stay on the devices beside the restored ones.
        del position
      else:
        break
  if not is_first():
    return []
  return _report_end(experiment, workdir, books.folder)


def _loaded(initial: Callable[[], Any]) -> Callable[[], Any]:
  """Calls a function now, and returns one whose first call returns the result."""
  results = [initial()]
  return lambda: results.pop() if results else initial()


def _report_end(experiment: Experiment, workdir: str, folder: str) -> list[dict[str, Any]]:
  """Prints tables and draws plots of a finished run, as far as its books allow it.

  Args:
    experiment: experiment that was trained.
    workdir: folder of the run.
    folder: folder of its records on this machine.

  Returns:
    The records of metrics.jsonl.
  """
  records: list[dict[str, Any]] = []
  with _as_warning():
    records = read_metrics(folder)
  print(summary(records, {"experiment": experiment.name, "workdir": workdir}))
  with _as_warning():
    print(goodput.as_text(goodput.read_goodput(folder)))
  with _as_warning(), writing_to(folder):
    # Starts are quicker without a third of a second for Matplotlib.
    with importing_matplotlib():
      from train.report.run_plots import write_plots

    plots = write_plots(records, folder, title=experiment.name)
    print(f"plots: {', '.join(os.path.join(workdir, plot.relative_to(folder)) for plot in plots)}")
  return records


@contextlib.contextmanager
def _as_warning() -> Iterator[None]:
  """Logs an error that the user can correct, and goes on: the run is done."""
  try:
    yield
  except UserError as error:
    logging.warning("%s", error)


def _train_from(position: Position, run: _Run, events: Sequence[str]) -> None:
  """Trains from a position to the schedule's end: batch, step, log, evaluate, save.

  Args:
    position: position to start from; updated as the run goes on.
    run: everything that stays the same.
    events: texts of the events that led here, to be recorded.

  Raises:
    UserError: the run has to stop.
    Terminated: after a signal, or when data workers are killed again and again.
    _RollBackError: the run has to go on from an earlier checkpoint.
  """
  experiment, schedule, ledger = run.experiment, run.experiment.schedule, run.ledger
  ledger.goes_on_from(position.step)
  if position.owes_evaluation:
    # The checkpoint does not know what an earlier start from it has done.
    has_average = position.state.ema is not None
    position.owes_evaluation = not same_in_all_processes(
      is_first() and is_evaluated(run.books.folder, position.step, ema=has_average)
    )
  with (
    IdLog(
      run.books.folder,
      start=same_in_all_processes(next_start(run.books.folder) if is_first() else 0),
      process=jax.process_index(),
      processes=jax.process_count(),
      order={
        "seed": experiment.seed,
        "examples": run.train_examples,
        "batch_size": experiment.data.batch_size,
        "repetitions": experiment.data.repetitions,
      },
    ) as ids,
    Reports(
      run.books.folder,
      total_steps=run.total_steps,
      step=position.step,
      evaluates_again=position.owes_evaluation,
      loggers=run.loggers,
    ) as reports,
  ):
    # Recorded only now, because opening the reports has dropped the records of steps to be redone.
    for text in events:
      reports.event(position.step, text)
    reports.message(_describe(run, position.step))
    ledger.begin_steps()
    tally = Tally(experiment.data.batch_size, position.counts)
    if position.step == run.total_steps and not same_in_all_processes(reports.has_evaluation):
      # The run was finished, and its results are not on record any more.
      position.owes_evaluation = True
    is_compiled = position.roll_backs > 0
    if position.owes_evaluation:
      if _evaluate(position, run, tally, reports) is None:
        _terminate(position, run, tally, ids, reports)
      position.owes_evaluation = False

    with BatchFetcher(run.batches) as fetcher:
      while position.step < run.total_steps:
        started_seconds = time.monotonic()
        with ledger.phase(goodput.DATA_WAIT):
          fetched = _with_data(fetcher.next, position, run, tally, reports)
        tally.waited(time.monotonic() - started_seconds)
        if fetched is None:
          _terminate(position, run, tally, ids, reports)
        position.step += 1
        position.data_state = fetched.state_after
        step = position.step
        is_left_out = faults.is_left_out(step, position.left_out)
        ids.append(step, fetched.batch, left_out=is_left_out)

        if is_left_out:
          position.state = run.skip_step(position.state)
        else:
          with ledger.phase(goodput.STEP if is_compiled else goodput.COMPILE):
            position.state, metrics = run.train_step(
              position.state, put_batch(fetched.batch, run.mesh)
            )
          if not is_compiled:
            # The first record's speed is that of the steps, without the compilation.
            tally.restart_clock()
            is_compiled = True
          run.termination.begin_steps()
          tally.add(step, metrics)
        ledger.step_done(step)
        _settle(position, run, tally, reports, running_max=STEPS_AHEAD)

        is_last = step == run.total_steps
        saves = is_last or _is_due(step, schedule.checkpoint_every_steps)
        evaluates = is_last or _is_due(step, schedule.evaluate_every_steps)
        if saves or evaluates or _is_due(step, schedule.log_every_steps):
          _settle(position, run, tally, reports, running_max=0)
          reports.training({"step": step, "kind": "train", **tally.close_window()})

        results = None
        position.owes_evaluation = evaluates
        if run.termination.is_due():
          _terminate(position, run, tally, ids, reports)
        if evaluates:
          results = _evaluate(position, run, tally, reports)
          if results is None:
            _terminate(position, run, tally, ids, reports)
          position.owes_evaluation = False
        if saves:
          _save(position, run, ids, reports, metrics=results)
        if saves or evaluates:
          tally.restart_clock()
    with ledger.phase(goodput.CHECKPOINT):
      run.checkpoints.wait()


def _with_data(
  use: Callable[[Callable[[], bool]], Any],
  position: Position,
  run: _Run,
  tally: Tally,
  reports: Reports,
) -> Any:
  """Calls a function that waits for data, and deals with data workers that are killed meanwhile.

  Args:
    use: function of another one, which tells whether the wait is to be broken off. It returns None
      if it is.
    position: position of the run.
    run: everything that stays the same.
    tally: gets the number of killed workers.
    reports: gets a record of each.

  Returns:
    What `use` returns; None if the run is to be terminated.

  Raises:
    SystemExit: there is no data because workers are killed again and again, and other processes
      wait for it, so that nothing can be saved.
  """

  def is_interrupted() -> bool:
    _note_worker_deaths(position, run, tally, reports)
    return run.termination.is_due_alone()

  try:
    return use(is_interrupted)
  except TooManyDeathsError as error:
    run.termination.request(EXIT_LOST_PROCESS, str(error))
    if run.termination.is_due_alone():
      return None
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_LOST_PROCESS) from error


def _note_worker_deaths(position: Position, run: _Run, tally: Tally, reports: Reports) -> None:
  """Records and counts data workers that were killed; asks for the end if they are too many."""
  while not run.death_reports.empty():
    tally.counts.worker_deaths += 1
    reports.event(position.step, run.death_reports.get())
  if run.deaths.are_too_many():
    run.termination.request(EXIT_LOST_PROCESS, run.deaths.too_many())


def _settle(
  position: Position, run: _Run, tally: Tally, reports: Reports, *, running_max: int
) -> None:
  """Waits until at most `running_max` steps still run, and acts on bad steps and bad images.

  Raises:
    UserError: the run has to stop.
    _RollBackError: the run has to go on from an earlier checkpoint.
  """
  for outcome in tally.settle(running_max=running_max):
    if not outcome.is_bad:
      continue
    if outcome.is_skipped:
      reports.event(outcome.step, f"step {outcome.step} was skipped: loss {outcome.loss:.4g}")
    decision = faults.decide(
      outcome,
      tally.skipped_in_a_row,
      run.experiment.faults,
      checkpoint_steps=run.checkpoints.all_steps(),
      roll_backs=position.roll_backs,
    )
    match decision:
      case faults.Stop(reason):
        _stop(outcome.step, reason, run, reports)
      case faults.RollBack(to_step):
        run.checkpoints.delete_after(to_step)
        raise _RollBackError(decision)
  run.batches.check_bad_images(tally.counts.bad_images, tally.counts.images)


def _stop(step: int, reason: str, run: _Run, reports: Reports) -> NoReturn:
  """Records that the run has diverged, and ends it."""
  message = faults.stop_message(
    reason, run.experiment, run.checkpoints.latest_step(), takes_changes=run.takes_changes
  )
  reports.fault(step, message, faults.DIVERGED)
  raise UserError(message)


def _evaluate(
  position: Position, run: _Run, tally: Tally, reports: Reports
) -> dict[str, float] | None:
  """Evaluates the parameters and their moving average, if there is one, and reports the scores.

  Returns:
    The metrics by which checkpoints are ranked, or None if the run is to be terminated.
  """
  networks = {False: position.state.parameters}
  if position.state.ema is not None:
    networks[True] = position.state.ema
  with run.ledger.phase(goodput.EVALUATION):
    for is_ema, parameters in networks.items():

      def score(is_interrupted_alone: Callable[[], bool], parameters: Any = parameters):
        return evaluate(
          run.evaluation_step,
          parameters,
          run.experiment.data,
          run.mesh,
          is_interrupted=run.termination.is_due,
          is_interrupted_alone=is_interrupted_alone,
          deaths=run.deaths,
        )

      scores = _with_data(score, position, run, tally, reports)
      if scores is None:
        return None
      reports.evaluation(
        {"step": position.step, "kind": "evaluation", "ema": is_ema, **scores.scalars()}
      )
  # The last scores are those of the network to be used later: the moving average, if there is one.
  return {BEST_METRIC: scores.top1}


def _save(
  position: Position,
  run: _Run,
  ids: IdLog,
  reports: Reports,
  *,
  metrics: dict[str, float] | None = None,
) -> None:
  """Starts to save a checkpoint; ends the run instead if the state is not finite."""
  with run.ledger.phase(goodput.CHECKPOINT):
    ids.flush()
    run.ledger.write()
    run.books.upload()
    if not bool(run.is_finite(position.state)):
      reason = f"the state after step {position.step} is not finite and was not saved"
      _stop(position.step, reason, run, reports)
    resume.save(run.checkpoints, position, run.metadata, metrics)


def _terminate(
  position: Position, run: _Run, tally: Tally, ids: IdLog, reports: Reports
) -> NoReturn:
  """Saves the position, unless it has a checkpoint already, and ends the run."""
  _settle(position, run, tally, reports, running_max=0)
  if position.step > (run.checkpoints.latest_step() or 0):
    _save(position, run, ids, reports)
    with run.ledger.phase(goodput.CHECKPOINT):
      run.checkpoints.wait()
  verb = {EXIT_INTERRUPTED: "interrupted", EXIT_LOST_PROCESS: "stopped"}.get(
    run.termination.code, "terminated"
  )
  reports.message(
    (f"{run.termination.reason}; " if run.termination.reason else "")
    + (
      f"{verb} after step {position.step}, of which there is a checkpoint; run the same command "
      "again to resume"
      if position.step
      else f"{verb} before the first step"
    )
  )
  raise Terminated(run.termination.code)


def _describe(run: _Run, step: int) -> str:
  """Returns one line for the person who started the run."""
  experiment = run.experiment
  start = f"resuming after step {step}" if step else "starting"
  if experiment.initial_weights and not step:
    start += f" from {experiment.initial_weights}"
  return (
    f"{experiment.name}: NFNet-{experiment.model.variant}, "
    f"{format_count(run.train_examples, 'image')}, {format_count(run.total_steps, 'step')} of "
    f"{experiment.data.batch_size} on "
    f"{format_count(run.mesh.size, f'{jax.devices()[0].device_kind} device')}; {start}; compiling"
  )


def _is_due(step: int, every_steps: int | None) -> bool:
  """Returns whether something that is done every `every_steps` steps is due; None means never."""
  return every_steps is not None and step % every_steps == 0
