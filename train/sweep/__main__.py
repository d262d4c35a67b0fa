r"""Runs a grid of (variant, epoch budget, learning rate), one training after the other.

    python -m train.sweep --plan=FILE --folder=DIR
    python -m train.sweep --show --folder=DIR

The first command is one worker. Started as often as there is room, on one machine or on many that
share DIR, workers divide the trials among them; each may be killed, and more may come at any time.
`train/sweep/plan.py` says what a plan is, `train/sweep/folder.py` what is in the folder. With
`learning_rates = "search"`, what has finished decides which rates are run next
(`train/sweep/learning_rate_search.py`).

A worker trains on all devices that it sees: two on one machine need, for example, another
CUDA_VISIBLE_DEVICES each. All machines run the same version and have configuration and data at the
same paths.
"""

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from train.sweep.folder import BEAT_SECONDS, SweepFolder
from train.sweep.plan import load_plan
from train.sweep.results import results, write_results
from train.sweep.table import LiveTable, best_rates_text, table_rows, table_text
from train.sweep.worker import Stop, Worker, is_failed

_SILENT_SECONDS_MIN = 5 * BEAT_SECONDS

_PLAN = flags.DEFINE_string("plan", None, "TOML file that says what is run.")
_FOLDER = flags.DEFINE_string("folder", None, "Of the sweep; all workers have the same.")
_SHOW = flags.DEFINE_bool("show", False, "Print the table, write results.csv and end.")
_RETRY_FAILED = flags.DEFINE_bool(
  "retry_failed", False, "Run what has failed again, but for what diverged."
)
_SILENT_SECONDS_MAX = flags.DEFINE_float(
  "silent_seconds_max", 120.0, "After which a worker counts as dead and its trial is taken over."
)
_COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache", None, "Folder for compiled programs, handed to each training."
)


def main(arguments: list[str]) -> None:
  """Works, or shows."""
  refuse_arguments(arguments)
  if _FOLDER.value is None:
    raise UserError("--folder=None: name the folder of the sweep")
  folder = SweepFolder(_FOLDER.value)
  if _SHOW.value:
    if _PLAN.value is not None or _RETRY_FAILED.value:
      raise UserError("--show runs nothing; leave out --plan and --retry_failed")
    folder.check()
    _show(folder)
    return
  if _PLAN.value is None:
    raise UserError("--plan=None: name a plan file, or --show the sweep as it is")
  if _SILENT_SECONDS_MAX.value < _SILENT_SECONDS_MIN:
    raise UserError(
      f"--silent_seconds_max={_SILENT_SECONDS_MAX.value:g}: give {_SILENT_SECONDS_MIN:g} or more; "
      f"workers show every {BEAT_SECONDS:g} s that they live"
    )
  plan = load_plan(_PLAN.value)
  folder.create(plan.fixed)
  if _RETRY_FAILED.value:
    folder.retry_failed()
  cache = _COMPILATION_CACHE.value
  with Stop() as stop, LiveTable() as table:
    Worker(
      plan,
      folder,
      silent_seconds_max=_SILENT_SECONDS_MAX.value,
      stop=stop,
      table=table,
      further_arguments=() if cache is None else (f"--compilation_cache={cache}",),
    ).work()
  _show(folder)
  _raise_if_any_failed(folder)


def _raise_if_any_failed(folder: SweepFolder) -> None:
  entries = folder.entries()
  failed = [entry for entry in entries.values() if is_failed(entry)]
  if failed:
    first = min(failed, key=lambda entry: folder.trial(entry.name).order)
    raise UserError(
      f"{len(failed)} of {len(entries)} trials failed; {first.name}: {first.read().get('reason')}; "
      "mend it and add --retry_failed"
    )


def _show(folder: SweepFolder) -> None:
  entries = folder.entries()
  path = write_results(folder)
  print(table_text(table_rows(folder, entries)))
  if rows := results(folder, entries):
    print(best_rates_text(rows))
  print(f"results: {path}")


if __name__ == "__main__":
  run_main(main)
