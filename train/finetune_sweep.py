r"""Fine-tunes what a sweep has pre-trained, with several seeds each, and probes it.

    python -m train.finetune_sweep --folder=SWEEP --config=train/configs/demo_finetune.py \
        --config.data.path=DATA

takes the best trial of each variant and epoch budget (`--all_trials` takes all), and leaves
SWEEP/finetuned.csv, whose columns are those of the sweep's results.csv and

    top1_error_percent            on held-out images after fine-tuning, the mean over seeds
    top1_error_percent_deviation  standard deviation over seeds; empty of one
    seeds                         that there are
    probe_error_percent           of a linear classifier, before fine-tuning (`train.probe`)
    probe_squared_error           of the same

`train.scaling_law` draws it and `train.choose_checkpoint` learns from it. Interrupted and started
again, it goes on where it was; trials that the sweep has finished since come to it.
"""

import contextlib
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import run_main
from nfnet.errors import UserError
from train.config.config_file import as_argument, load_experiment, parse_arguments, to_json
from train.config.experiment import Experiment
from train.probe import probe
from train.run.compilation_cache import use_compilation_cache
from train.run.initial_weights import with_new_classifier
from train.run.loop import train
from train.run.records.metrics import read_metrics
from train.sweep.folder import SweepFolder, write_whole
from train.sweep.results import (
  COLUMNS,
  best_results,
  last_evaluation,
  results,
  write_table,
)

FINETUNED_FILE = "finetuned.csv"
FINETUNED_COLUMNS = (
  *COLUMNS,
  "top1_error_percent",
  "top1_error_percent_deviation",
  "seeds",
  "probe_error_percent",
  "probe_squared_error",
)
SET_BY_FINETUNE_SWEEP = ("name", "model.variant", "seed", "initial_weights")
"""Fields of the configuration that make a run what it is."""


def finetune_sweep(
  folder: SweepFolder,
  config: str,
  overrides: Sequence[str],
  *,
  seeds: int,
  all_trials: bool,
  probe_images_max: int,
) -> pathlib.Path:
  """Fine-tunes, probes and writes the table anew after each trial.

  Args:
    folder: of a sweep.
    config: of the fine-tuning.
    overrides: of it, `--config.FIELD=VALUE`.
    seeds: 0, 1, ... of each trial.
    all_trials: whether those too that others of their variant and epochs beat.
    probe_images_max: training images that are probed.

  Returns:
    The table.

  Raises:
    UserError: the sweep has finished nothing, an override is not free, or a run cannot be started.
    Terminated: after SIGTERM.
  """
  for argument in overrides:
    field = argument.partition("=")[0].removeprefix("--config.")
    if field in SET_BY_FINETUNE_SWEEP:
      raise UserError(f"--config.{field} is what each trial sets; leave it out")
  rows = results(folder, folder.entries())
  if not rows:
    raise UserError(f"--folder={folder.path} has no trial that is done; run train.sweep first")
  chosen = rows if all_trials else best_results(rows)
  path, table = folder.path / FINETUNED_FILE, []
  with tqdm(total=len(chosen) * seeds, unit="run", disable=None) as bar:
    for row in chosen:
      bar.set_description(row["trial"])
      place = folder.path / "finetuned" / row["trial"]
      experiments = [_experiment(folder, row, config, overrides, seed) for seed in range(seeds)]
      errors_percent = []
      for seed, experiment in enumerate(experiments):
        errors_percent.append(_error_percent(experiment, place / f"seed-{seed}"))
        bar.update()
      # Features do not depend on the seed.
      probed = _probed(experiments[0], place / "probe.json", probe_images_max)
      table.append({**row, **_summary(errors_percent), **probed})
      tqdm.write(_line(table[-1]))
      write_table(path, FINETUNED_COLUMNS, table)
  return path


def _experiment(
  folder: SweepFolder, row: Mapping[str, Any], config: str, overrides: Sequence[str], seed: int
) -> Experiment:
  fields = {
    "name": f"{row['trial']} fine-tuned, seed {seed}",
    "model.variant": row["name"],
    "seed": seed,
    "initial_weights": str(folder.workdir(row["trial"])),
  }
  return load_experiment(
    config, [*overrides, *(as_argument(field, value) for field, value in fields.items())]
  )


def _error_percent(experiment: Experiment, workdir: pathlib.Path) -> float:
  """Of the run's last evaluation; trains what is not done."""

  def run() -> dict[str, float]:
    workdir.mkdir(parents=True, exist_ok=True)
    # Each run says as much as when it is started by hand; here that is for its log.
    with (workdir / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
      train(experiment, str(workdir), initial=lambda: with_new_classifier(experiment))
    last = last_evaluation(read_metrics(workdir))
    return {"top1_error_percent": 100 * (1 - last["top1"])}

  found = _once(workdir / "result.json", {"experiment": to_json(experiment)}, run)
  return found["top1_error_percent"]


def _once(
  path: pathlib.Path, asked: Mapping[str, Any], run: Callable[[], dict[str, float]]
) -> dict[str, float]:
  """What `run` returns; read from `path` if the same was asked for before."""
  if path.exists():
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["asked"] == asked:
      return before["found"]
  found = run()
  write_whole(path, json.dumps({"asked": asked, "found": found}))
  return found


def _summary(errors_percent: Sequence[float]) -> dict[str, Any]:
  several = len(errors_percent) > 1
  return {
    "top1_error_percent": statistics.fmean(errors_percent),
    "top1_error_percent_deviation": statistics.stdev(errors_percent) if several else "",
    "seeds": len(errors_percent),
  }


def _probed(experiment: Experiment, path: pathlib.Path, images_max: int) -> dict[str, float]:
  def run() -> dict[str, float]:
    found = probe(experiment, images_max=images_max)
    return {
      "probe_error_percent": found.error_percent,
      "probe_squared_error": found.squared_error,
    }

  return _once(path, {"experiment": to_json(experiment), "images_max": images_max}, run)


def _line(row: Mapping[str, Any]) -> str:
  return (
    f"{row['trial']}: pre-training loss {row['loss_nats']:.4f}, fine-tuned error "
    f"{row['top1_error_percent']:.2f} % ({row['seeds']} seeds), probe "
    f"{row['probe_error_percent']:.2f} %"
  )


def _define_flags() -> None:
  flags.DEFINE_string("folder", None, "Of the sweep.", required=True)
  flags.DEFINE_string("config", None, "Python file that describes the fine-tuning.", required=True)
  flags.DEFINE_integer("seeds", 3, "Runs of each trial.", lower_bound=1)
  flags.DEFINE_bool("all_trials", False, "All learning rates, not only the best of each setting.")
  flags.DEFINE_integer("probe_images_max", 20_000, "Of the training images.", lower_bound=2)


def main(arguments: list[str]) -> None:
  """Fine-tunes and writes."""
  values = flags.FLAGS
  folder = SweepFolder(values.folder)
  folder.check()
  use_compilation_cache()
  path = finetune_sweep(
    folder,
    values.config,
    arguments[1:],
    seeds=values.seeds,
    all_trials=values.all_trials,
    probe_images_max=values.probe_images_max,
  )
  print(f"results: {path}")


if __name__ == "__main__":
  _define_flags()
  run_main(main, flags_parser=parse_arguments)
