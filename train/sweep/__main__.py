r"""Runs a grid of (variant, epoch budget, learning rate), one training after the other.

    python -m train.sweep --plan=FILE --folder=DIR
    python -m train.sweep --show --folder=DIR

The first command is one worker. Start as many as there is room for, on one machine or on several
that share DIR. Workers divide the trials among themselves; any of them may be killed, and more may
join at any time. `train/sweep/plan.py` describes plans, `train/sweep/folder.py` the folder. With
`learning_rates = "search"`, finished trials determine which rates are run next
(`train/sweep/learning_rate_search.py`).

A worker trains on all devices that it sees, so two workers on one machine need, for example,
different CUDA_VISIBLE_DEVICES. All machines must run the same version of the code and have the
configuration and the data at the same paths.
"""

import sys
from collections.abc import Mapping

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError, format_count
from nfnet.system.paths import define_path
from train.report.output import print_and_write
from train.run.leases.heartbeat import HEARTBEAT_SECONDS
from train.run.records.loggers import define_loggers, load_loggers, logger_arguments
from train.sweep.folder import FAILED, WAITING, Entry, SweepFolder
from train.sweep.plan import Plan, load_plan
from train.sweep.results import results, write_results
from train.sweep.stop import Stop
from train.sweep.trial_table import LiveTable, best_rates_text, table_rows, table_text
from train.sweep.worker import Worker, is_failed

_SILENT_SECONDS_MIN = 5 * HEARTBEAT_SECONDS

_PLAN = define_path("plan", None, "TOML file that defines what is run.", use="read")
_FOLDER = define_path(
  "folder", None, "Folder of the sweep, the same for all workers.", use="write folder"
)
_SHOW = flags.DEFINE_bool("show", False, "Print the table, write results.csv and exit.")
_RETRY_FAILED = flags.DEFINE_bool(
  "retry_failed", False, "Run failed trials again, except those that diverged."
)
_SILENT_SECONDS_MAX = flags.DEFINE_float(
  "silent_seconds_max", 120.0, "Silence after which a worker counts as dead and loses its trial."
)
_COMPILATION_CACHE = define_path(
  "compilation_cache", None, "Folder for compiled programs of the trainings.", use="write folder"
)
_LOGGERS = define_loggers()


def main(arguments: list[str]) -> None:
  """Works on the sweep, or shows it."""
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
      f"workers show that they are alive every {HEARTBEAT_SECONDS:g} s"
    )
  # Tried here, because it would fail each training.
  load_loggers(_LOGGERS.value)
  plan = load_plan(_PLAN.value)
  folder.create(plan.fixed)
  folder.entries()
  _say_ignored(folder.ignored_text())
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
      further_arguments=(
        *(() if cache is None else (f"--compilation_cache={cache}",)),
        *logger_arguments(_LOGGERS.value),
      ),
    ).work()
  entries = _show(folder)
  _raise_if_any_failed(folder, entries)
  _raise_if_any_ignored(folder, plan)


def _raise_if_any_failed(folder: SweepFolder, entries: Mapping[str, Entry]) -> None:
  """Raises UserError if trials failed for a reason other than their learning rate."""
  failed = [entry for entry in entries.values() if is_failed(entry)]
  if failed:
    first = min(failed, key=lambda entry: folder.trial(entry.name).order)
    raise UserError(
      f"{len(failed)} of {format_count(len(entries), 'trial')} failed; {first.name}: "
      f"{first.read().get('reason')}; fix the cause and add --retry_failed"
    )


def _raise_if_any_ignored(folder: SweepFolder, plan: Plan) -> None:
  """Raises UserError if something else has the place of a trial of the plan."""
  for trial in plan.trials():
    places = (folder.path / state / trial.name for state in (WAITING, FAILED))
    for place in (folder.trial_folder(trial.name), *places):
      if str(place.relative_to(folder.path)) in folder.ignored:
        raise UserError(
          f"trial {trial.name} was not run, because {str(place)!r} is in its place: "
          "move that away and run the same command again"
        )


def _say_ignored(text: str) -> None:
  """Says on stderr what of the folder was left out, if anything was."""
  if text:
    print(text, file=sys.stderr, flush=True)


def _show(folder: SweepFolder) -> dict[str, Entry]:
  """Prints the tables and writes results.csv; returns the entries that the tables show."""
  entries = folder.entries()
  rows = results(folder, entries)
  tables = [table_text(table_rows(folder, entries, rows))]
  if rows:
    tables.append(best_rates_text(rows))
  # Writing lists the folder again.
  ignored = folder.ignored_text()
  print_and_write(
    "\n".join(tables), lambda: print(f"results: {write_results(folder, entries, rows)}")
  )
  _say_ignored(ignored)
  return entries


if __name__ == "__main__":
  run_main(main, prints_result=False)
