"""Fine-tunes and probes the networks that a sweep has pre-trained, and writes the table.

The columns of finetuned.csv are those of the sweep's results.csv and

    top1_error_percent            on held-out images after fine-tuning, the mean over seeds
    top1_error_percent_deviation  standard deviation over seeds; empty for one seed
    seeds                         number of seeds
    probe_error_percent           of a linear classifier, before fine-tuning (`train.probe`)
    probe_squared_error           of the same classifier
"""

import contextlib
import io
import json
import pathlib
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from tqdm import tqdm

from nfnet.errors import UserError, format_count
from nfnet.foreign_files.json_text import read_json_object
from nfnet.foreign_files.numbers import is_number
from nfnet.system.standard_streams import LenientFile
from train.config.experiment import Experiment
from train.config.files import load_experiment
from train.config.json_conversion import to_json
from train.config.overrides import as_argument
from train.run.initial_weights import with_new_classifier
from train.run.leases.workdir_lease import lease_on
from train.run.linear_probe import probe
from train.run.loop import train
from train.run.records.loggers import MakeLogger
from train.run.records.metrics import read_metrics
from train.run.records.workdir import writing_to
from train.sweep.folder import SweepFolder, open_log, write_whole
from train.sweep.results import (
  COLUMNS,
  best_results,
  last_evaluation,
  results,
  write_table,
)

FINETUNED_FILE = "finetuned.csv"
FINETUNED_FOLDER = "finetuned"
"""Folder in the sweep's that has the workdirs of the fine-tunings."""
FINETUNED_COLUMNS = (
  *COLUMNS,
  "top1_error_percent",
  "top1_error_percent_deviation",
  "seeds",
  "probe_error_percent",
  "probe_squared_error",
)
SET_BY_FINETUNING = ("name", "model.variant", "seed", "initial_weights")
"""Fields of the configuration that differ between runs and therefore cannot be overridden."""


def finetune_sweep(
  folder: SweepFolder,
  config: str,
  overrides: Sequence[str],
  *,
  seeds: int,
  all_trials: bool,
  probe_images_max: int,
  loggers: Mapping[str, MakeLogger] | None = None,
) -> pathlib.Path:
  """Fine-tunes and probes the trials of a sweep, and rewrites the table after each of them.

  Args:
    folder: folder of the sweep.
    config: configuration file of the fine-tuning.
    overrides: arguments `--config.FIELD=VALUE` for it.
    seeds: number of runs for each trial, with seeds 0, 1, ...
    all_trials: whether to take all learning rates, not only the best of each variant and epochs.
    probe_images_max: number of training images that are probed at most.
    loggers: functions that make loggers for each run (`train.run.records.loggers`).

  Returns:
    Path of the table.

  Raises:
    InUseError: the same is being done by another process.
    UserError: the sweep has finished no trial, an override sets a field that each trial sets, or a
      run cannot be started.
    Terminated: after SIGTERM.
  """
  for argument in overrides:
    field = argument.partition("=")[0].removeprefix("--config.")
    if field in SET_BY_FINETUNING:
      raise UserError(f"--config.{field} is set for each trial; leave it out")
  rows = results(folder, folder.entries())
  if not rows:
    raise UserError(f"--folder={folder.path} has no trial that is done; run train.sweep first")
  chosen = rows if all_trials else best_results(rows)
  path, table = folder.path / FINETUNED_FILE, []
  with (
    lease_on(folder.path / FINETUNED_FOLDER),
    tqdm(total=len(chosen) * seeds, unit="run", disable=None) as bar,
  ):
    for row in chosen:
      bar.set_description(row["trial"])
      place = folder.path / FINETUNED_FOLDER / row["trial"]
      experiments = [_experiment(folder, row, config, overrides, seed) for seed in range(seeds)]
      errors_percent = []
      for seed, experiment in enumerate(experiments):
        # Elsewhere than on a terminal there is no bar, and a run takes minutes.
        tqdm.write(f"{row['trial']}: seed {seed}, {place}/seed-{seed}/log.txt")
        errors_percent.append(_error_percent(experiment, place / f"seed-{seed}", loggers))
        bar.update()
      # One seed is enough, because the features do not depend on it.
      probed = _probed(experiments[0], place / "probe.json", probe_images_max)
      table.append({**row, **_summary(errors_percent), **probed})
      tqdm.write(_line(table[-1]))
      write_table(path, FINETUNED_COLUMNS, table)
  return path


def _experiment(
  folder: SweepFolder, row: Mapping[str, Any], config: str, overrides: Sequence[str], seed: int
) -> Experiment:
  """Returns the fine-tuning of one trial with one seed."""
  fields = {
    "name": f"{row['trial']} fine-tuned, seed {seed}",
    "model.variant": row["name"],
    "seed": seed,
    "initial_weights": str(folder.workdir(row["trial"])),
  }
  return load_experiment(
    config, [*overrides, *(as_argument(field, value) for field, value in fields.items())]
  )


def _error_percent(
  experiment: Experiment, workdir: pathlib.Path, loggers: Mapping[str, MakeLogger] | None
) -> float:
  """Returns the error of a run's last evaluation, after finishing the run if it is not done yet."""

  def run() -> dict[str, float]:
    with writing_to(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
      log = open_log(workdir / "log.txt")
    # Its output goes to a log, because a run prints as much as when it is started by hand.
    with log, _printing_to(log):
      train(
        experiment,
        str(workdir),
        initial=lambda: with_new_classifier(experiment),
        loggers=loggers,
      )
    last = last_evaluation(read_metrics(workdir))
    if last is None:
      raise UserError(
        f"{workdir}: the last evaluation is not on record; make room on the disk and start again"
      )
    return {"top1_error_percent": 100 * (1 - last["top1"])}

  asked = {"experiment": to_json(experiment)}
  found = run_once(workdir / "result.json", asked, ("top1_error_percent",), run)
  return found["top1_error_percent"]


@contextlib.contextmanager
def _printing_to(log: BinaryIO) -> Iterator[None]:
  """Sends what is printed to a log; what cannot be written there is lost and ends nothing."""
  with (
    io.TextIOWrapper(io.BufferedWriter(LenientFile(log.fileno())), encoding="utf-8") as stream,
    contextlib.redirect_stdout(stream),
  ):
    yield


def run_once(
  path: pathlib.Path,
  asked: Mapping[str, Any],
  columns: Collection[str],
  run: Callable[[], dict[str, float]],
) -> dict[str, float]:
  """Returns the result of `run`, from a file if the same request was made before.

  Args:
    path: JSON file that keeps the result together with the request.
    asked: JSON values that determine the result.
    columns: names of the numbers in the result.
    run: function that computes the result.
  """
  # A damaged file is as good as none: the result is computed again.
  with contextlib.suppress(OSError, ValueError):
    before = read_json_object(path)
    found = before.get("found")
    is_result = isinstance(found, dict) and found.keys() == set(columns)
    if before.get("asked") == asked and is_result and all(map(is_number, found.values())):
      return found
  found = run()
  with writing_to(path.parent):
    write_whole(path, json.dumps({"asked": asked, "found": found}))
  return found


def _summary(errors_percent: Sequence[float]) -> dict[str, Any]:
  """Returns the columns that summarize the seeds of a trial."""
  several = len(errors_percent) > 1
  return {
    "top1_error_percent": statistics.fmean(errors_percent),
    "top1_error_percent_deviation": statistics.stdev(errors_percent) if several else "",
    "seeds": len(errors_percent),
  }


def _probed(experiment: Experiment, path: pathlib.Path, images_max: int) -> dict[str, float]:
  """Returns the columns of the probe."""

  def run() -> dict[str, float]:
    found = probe(experiment, images_max=images_max)
    return {
      "probe_error_percent": found.error_percent,
      "probe_squared_error": found.squared_error,
    }

  asked = {"experiment": to_json(experiment), "images_max": images_max}
  return run_once(path, asked, ("probe_error_percent", "probe_squared_error"), run)


def _line(row: Mapping[str, Any]) -> str:
  """Returns a row of the table for people."""
  return (
    f"{row['trial']}: pre-training loss {row['loss_nats']:.4f}, fine-tuned error "
    f"{row['top1_error_percent']:.2f} % ({format_count(row['seeds'], 'seed')}), probe "
    f"{row['probe_error_percent']:.2f} %"
  )
