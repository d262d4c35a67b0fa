"""Results of a sweep: reads the result of each trial and writes results.csv.

The columns of results.csv are those that `train.scaling_law` reads, and `trial` and
`held_out_error_percent`:

    trial                   name of the trial
    name                    variant of the network
    parameters              number of trained scalars
    epochs                  epoch budget
    learning_rate           peak learning rate
    compute_flops           FLOP of training: 6 x multiply-adds at the training resolution x images
    loss_nats               held-out loss at the end of the run
    held_out_error_percent  held-out top-1 error at the end of the run

Loss and error are those of the moving average where one is kept, otherwise of the parameters.
"""

import csv
import io
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nfnet.errors import UserError
from nfnet.foreign_files.numbers import is_number
from train.run.records.metrics import read_metrics
from train.sweep.folder import DONE, FAILED, Entry, SweepFolder, write_whole
from train.sweep.learning_rate_search import Finished
from train.sweep.trial import Trial

RESULTS_FILE = "results.csv"
COLUMNS = (
  "trial",
  "name",
  "parameters",
  "epochs",
  "learning_rate",
  "compute_flops",
  "loss_nats",
  "held_out_error_percent",
)


def read_result(workdir: pathlib.Path, trial: Trial) -> dict[str, Any]:
  """Reads a trial's row of results.csv from the metrics of its run.

  Raises:
    UserError: the last step was not evaluated.
  """
  last = last_evaluation(read_metrics(workdir))
  if last is None or last["step"] != trial.steps:
    raise UserError(
      f"{workdir}: no evaluation of the last step, {trial.steps}; add --retry_failed to run the "
      "trial again"
    )
  return _row(trial, last["loss"], 100 * (1 - last["top1"]))


def last_evaluation(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """Returns the evaluation of the last step, that of the moving average where one is kept.

  Args:
    records: records of metrics.jsonl.

  Returns:
    The record; None if nothing was evaluated.
  """
  evaluations = [
    record
    for record in records
    if record["kind"] == "evaluation" and "loss" in record and "top1" in record
  ]
  return max(
    evaluations, key=lambda record: (record["step"], bool(record.get("ema"))), default=None
  )


def results(folder: SweepFolder, entries: Mapping[str, Entry]) -> list[dict[str, Any]]:
  """Returns the rows of all trials that are done, small and short trials first.

  Trials without a result are noted in `folder.ignored`.
  """
  rows = []
  for entry in sorted(entries.values(), key=lambda one: folder.trial(one.name).order):
    if entry.state != DONE:
      continue
    if row := result_of(folder, entry):
      rows.append(row)
    else:
      folder.ignored[f"{DONE}/{entry.name}"] = (
        "not a result, and metrics.jsonl of its run has none either"
      )
  return rows


def result_of(folder: SweepFolder, entry: Entry) -> dict[str, Any] | None:
  """Returns the row of a trial that is done.

  It is read from the run's metrics where the entry is damaged, or is the result of another trial.

  Returns:
    The row; None if there is none.
  """
  trial, fields = folder.trial(entry.name), entry.read()
  row = _row(trial, fields.get("loss_nats"), fields.get("held_out_error_percent"))
  if _has_numbers(row) and all(fields.get(column) == value for column, value in row.items()):
    return row
  try:
    row = read_result(folder.workdir(entry.name), trial)
  except UserError:
    return None
  return row if _has_numbers(row) else None


def _row(trial: Trial, loss_nats: Any, error_percent: Any) -> dict[str, Any]:
  return {
    "trial": trial.name,
    "name": trial.variant,
    "parameters": trial.parameters,
    "epochs": trial.epochs,
    "learning_rate": trial.learning_rate,
    "compute_flops": trial.compute_flops,
    "loss_nats": loss_nats,
    "held_out_error_percent": error_percent,
  }


def _has_numbers(row: Mapping[str, Any]) -> bool:
  """Returns whether loss and error, which come from a file, are numbers."""
  return is_number(row["loss_nats"]) and is_number(row["held_out_error_percent"])


def write_results(
  folder: SweepFolder, entries: Mapping[str, Entry], rows: Sequence[Mapping[str, Any]]
) -> pathlib.Path:
  """Writes results.csv anew; with any number of workers, the last one to write has all rows.

  Args:
    folder: folder of the sweep.
    entries: entries of its trials as they were just now.
    rows: `results` of these.

  Returns:
    Path of the file.

  Raises:
    UserError: the file cannot be written.
  """
  path = folder.path / RESULTS_FILE
  while True:
    with folder.writing():
      write_table(path, COLUMNS, rows)
    # Another worker may have finished a trial meanwhile and written its table before this worker.
    # What a trial has done is not done again, so only a new one needs to be read.
    before, entries = _done(entries), folder.entries()
    if _done(entries) == before:
      return path
    rows = results(folder, entries)


def _done(entries: Mapping[str, Entry]) -> set[str]:
  """Returns the names of the trials that are done."""
  return {name for name, entry in entries.items() if entry.state == DONE}


def write_table(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
  """Writes a CSV file atomically.

  Args:
    path: path of the file.
    columns: header.
    rows: values by column.
  """
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path, text.getvalue())


def best_results(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Returns the row with the lowest loss for each name and epochs, in the order of `rows`."""
  best: dict[tuple[str, float], Mapping[str, Any]] = {}
  for row in rows:
    cell = row["name"], row["epochs"]
    if cell not in best or row["loss_nats"] < best[cell]["loss_nats"]:
      best[cell] = row
  return list(best.values())


def finished_trials(folder: SweepFolder, entries: Iterable[Entry]) -> list[Finished]:
  """Returns the trials that are done or have diverged, for the search for learning rates."""
  found = []
  for entry in entries:
    if entry.state not in (DONE, FAILED):
      continue
    trial = folder.trial(entry.name)
    if entry.state == DONE and (row := result_of(folder, entry)):
      loss = row["loss_nats"]
    elif entry.state == FAILED and entry.read().get("diverged"):
      loss = math.inf
    else:
      continue
    found.append(Finished(cell=trial.cell, learning_rate=trial.learning_rate, loss=loss))
  return found
