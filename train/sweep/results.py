"""What a sweep has found out: the result of each trial, and results.csv.

The columns of results.csv are those that `train.scaling_law` reads, and two more:

    trial
    name                    of the network
    parameters              scalars
    epochs
    learning_rate           peak
    compute_flops           of training: 6 x multiply-adds at the training resolution x images
    loss_nats               held-out, at the end of the run
    held_out_error_percent  top-1, at the end of the run

Loss and error are those of the moving average where one is kept, of the parameters elsewhere.
"""

import csv
import io
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nfnet.errors import UserError
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
  """A row of results.csv, from the metrics of a run that is over.

  Raises:
    UserError: there is no evaluation of the last step.
  """
  last = last_evaluation(read_metrics(workdir))
  if last is None or last["step"] != trial.steps:
    raise UserError(f"{workdir}: there is no evaluation of the last step, {trial.steps}")
  return {
    "trial": trial.name,
    "name": trial.variant,
    "parameters": trial.parameters,
    "epochs": trial.epochs,
    "learning_rate": trial.learning_rate,
    "compute_flops": trial.compute_flops,
    "loss_nats": last["loss"],
    "held_out_error_percent": 100 * (1 - last["top1"]),
  }


def last_evaluation(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """The record of the last step's evaluation, that of the moving average where one is kept.

  Args:
    records: of metrics.jsonl.

  Returns:
    None if nothing was evaluated.
  """
  evaluations = [record for record in records if record["kind"] == "evaluation"]
  return max(
    evaluations, key=lambda record: (record["step"], bool(record.get("ema"))), default=None
  )


def results(folder: SweepFolder, entries: Mapping[str, Entry]) -> list[dict[str, Any]]:
  """Rows of all trials that are done, small and short first."""
  done = [entry for entry in entries.values() if entry.state == DONE]
  rows = [entry.read() for entry in sorted(done, key=lambda one: folder.trial(one.name).order)]
  return [row for row in rows if row]


def write_results(folder: SweepFolder) -> pathlib.Path:
  """Writes results.csv anew; with any number of workers, the last one to write has all rows.

  Raises:
    UserError: it cannot be written.
  """
  path = folder.path / RESULTS_FILE
  written, rows = None, results(folder, folder.entries())
  while rows != written:
    with folder.writing():
      write_table(path, COLUMNS, rows)
    # What another worker has finished meanwhile it may have written before this was.
    written, rows = rows, results(folder, folder.entries())
  return path


def write_table(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
  """Writes a CSV file so that who looks sees what was there before or the whole of it."""
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path, text.getvalue())


def best_results(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Of rows that share name and epochs the one with the lowest loss, in the order of the first."""
  best: dict[tuple[str, float], Mapping[str, Any]] = {}
  for row in rows:
    cell = row["name"], row["epochs"]
    if cell not in best or row["loss_nats"] < best[cell]["loss_nats"]:
      best[cell] = row
  return list(best.values())


def finished_trials(folder: SweepFolder, entries: Iterable[Entry]) -> list[Finished]:
  """To the search for rates: what is done, and what diverged."""
  found = []
  for entry in entries:
    if entry.state not in (DONE, FAILED):
      continue
    content, trial = entry.read(), folder.trial(entry.name)
    if entry.state == DONE and "loss_nats" in content:
      loss = content["loss_nats"]
    elif content.get("diverged"):
      loss = math.inf
    else:
      continue
    found.append(Finished(cell=trial.cell, learning_rate=trial.learning_rate, loss=loss))
  return found
