"""Reads CSV tables of trained networks, with the cost and the quality of each, and checks them.

A table has one line for each run, below a header with these columns in any order:

    name                the network; all its runs have the same parameters
    parameters          trained scalars
    epochs              passes over the training data, for example 0.25
    compute_core_hours  training compute; or compute_flops, but the same one in all files
    loss_nats           loss on held-out images
    learning_rate       peak learning rate; may be absent
    top1_error_percent  error after fine-tuning; may be absent
    probe_squared_error of a linear classifier before fine-tuning (`train.probe`); may be absent
    trial, held_out_error_percent, top1_error_percent_deviation, seeds, probe_error_percent
                        written by `train.sweep` and `train.finetune_sweep`; not read

Name and compute are always needed; loss_nats needs parameters and epochs, and a run has a loss, an
error or both. A field may be empty where it is not needed. Lines that begin with # are comments.

A file may come from anywhere, so its size, the number and length of its lines and the range of its
numbers are bounded, and names are printable.

The tables of this project are found by their names too, wherever it is installed: paper_a_nfnets
and paper_a_finetuned (`train.published_runs`), and small_study_fashion_mnist,
small_study_cifar10_seed_0 and small_study_cifar10_seed_1 (`train.small_study`).
"""

import csv
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from nfnet.errors import UserError, quoted
from nfnet.foreign_files.regular_files import read_regular_file

_TRAIN = pathlib.Path(__file__).parents[1]
_OWN_TABLES = {
  **{path.stem: path for path in sorted((_TRAIN / "published_runs").glob("*.csv"))},
  **{f"small_study_{path.stem}": path for path in sorted((_TRAIN / "small_study").glob("*.csv"))},
}

RUNS_MAX = 100_000
"""Most runs of all files together."""
_BYTES_MAX = 64 * 2**20
_LINE_CHARACTERS_MAX = 10_000
_NAME_CHARACTERS_MAX = 200
# Beyond these, powers of the numbers would leave the range of floats. A loss in nats is of the
# order of 1, and the fits start from there.
_RANGE = (1e-30, 1e30)
_LOSS_RANGE = (1e-6, 1e6)

COMPUTE_COLUMNS = ("compute_core_hours", "compute_flops")
_NUMBERS = (
  "parameters",
  "epochs",
  "loss_nats",
  "learning_rate",
  "top1_error_percent",
  "probe_squared_error",
)
_NOT_READ = (
  "trial",
  "held_out_error_percent",
  "top1_error_percent_deviation",
  "seeds",
  "probe_error_percent",
)
_COLUMNS = ("name", *_NUMBERS, *COMPUTE_COLUMNS, *_NOT_READ)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One trained network; fields that the table leaves empty are None.

  Attributes:
    name: name of the network.
    parameters: number of trained scalars.
    epochs: passes over the training data.
    compute: training compute, in the unit of the table.
    loss_nats: loss on held-out images.
    learning_rate: peak learning rate.
    top1_error_percent: error after fine-tuning.
    probe_squared_error: squared error of a linear classifier before fine-tuning.
    place: file and line, for messages.
  """

  name: str
  parameters: float | None
  epochs: float | None
  compute: float
  loss_nats: float | None
  learning_rate: float | None
  top1_error_percent: float | None
  probe_squared_error: float | None
  place: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunTable:
  """Checked runs.

  Attributes:
    runs: runs in the order of the files.
    compute_column: "compute_core_hours" or "compute_flops".
  """

  runs: tuple[Run, ...]
  compute_column: str


def read_runs(paths: Iterable[str | pathlib.Path]) -> RunTable:
  """Reads files as one table.

  Args:
    paths: CSV files with the columns that this module's docstring describes, or names of tables of
      this project.

  Raises:
    UserError: a file cannot be read, or has an invalid column, line or value.
  """
  runs: list[Run] = []
  columns: dict[str, str] = {}
  for path in paths:
    column, more = _read_file(_own_table(str(path)))
    columns[str(path)] = column
    runs.extend(more)
    if len(runs) > RUNS_MAX:
      raise UserError(f"{str(path)!r}: more than {RUNS_MAX:,} runs; give fewer, or the best trials")
  units = set(columns.values())
  if len(units) > 1:
    has = ", ".join(f"{path!r} has {column}" for path, column in columns.items())
    raise UserError(f"compute must be in one unit: {has}; convert one of them")
  if not runs:
    raise UserError(f"no run in {', '.join(map(repr, columns)) or 'no file'}; give some")
  _check_sizes(runs)
  return RunTable(runs=tuple(runs), compute_column=units.pop())


def best_trials(runs: Sequence[Run], quantity: str = "loss_nats") -> tuple[Run, ...]:
  """Returns the best of the runs that share name and epochs.

  Such runs are trials of one setting with different learning rates, for example; paper A's curves
  consist of the best ones. Runs without epochs are not trials of each other.

  Args:
    runs: runs of a table.
    quantity: field by which runs are compared, the lowest being best; runs without it are left out.

  Returns:
    One run for each setting, in the order in which the settings first occur.
  """
  best: dict[tuple[str, float | None, float | None], Run] = {}
  for run in runs:
    value = getattr(run, quantity)
    if value is None:
      continue
    setting = (run.name, run.epochs, run.compute if run.epochs is None else None)
    if setting not in best or value < getattr(best[setting], quantity):
      best[setting] = run
  return tuple(best.values())


def _own_table(path: str) -> str:
  """Returns the path of a table of this project for its name, and any other path as it is."""
  if not re.fullmatch(r"[\w-]+", path) or os.path.lexists(path):
    return path
  if path not in _OWN_TABLES:
    raise UserError(f"--runs={path} is neither a file nor one of {', '.join(_OWN_TABLES)}")
  return str(_OWN_TABLES[path])


def _read_file(path: str) -> tuple[str, list[Run]]:
  """Returns the name of the compute column, and the runs."""
  try:
    # utf-8-sig, because spreadsheets put a byte order mark at the beginning.
    lines = read_regular_file(path, _BYTES_MAX).decode("utf-8-sig").splitlines()
  except OSError as error:
    raise UserError(f"--runs={path} cannot be read: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise UserError(f"--runs={path} is not UTF-8 text: {error.reason}; save it as CSV") from error
  header: list[str] | None = None
  compute_column = ""
  runs: list[Run] = []
  for number, line in enumerate(lines, start=1):
    if not line.strip() or line.startswith("#"):
      continue
    place = f"{path}, line {number}"
    fields = _split(line, place)
    if header is None:
      header, compute_column = fields, _check_header(fields, place)
      continue
    if len(fields) != len(header):
      raise UserError(
        f"{place}: {len(fields)} fields below a header of {len(header)}: {quoted(line)}"
      )
    if len(runs) == RUNS_MAX:
      raise UserError(f"{place}: more than {RUNS_MAX:,} runs; give fewer, or the best trials")
    runs.append(_run(dict(zip(header, fields, strict=True)), compute_column, place))
  if header is None:
    raise UserError(f"{path} has no header; name the columns in its first line: {_known()}")
  return compute_column, runs


def _split(line: str, place: str) -> list[str]:
  """Returns the fields of one line."""
  if len(line) > _LINE_CHARACTERS_MAX:
    raise UserError(
      f"{place}: {len(line):,} characters, where {_LINE_CHARACTERS_MAX:,} are the most; this is "
      "not a table of runs"
    )
  if '"' not in line:
    # Five times as fast as the parser, which is made for whole files.
    return [field.strip() for field in line.split(",")]
  try:
    (fields,) = csv.reader([line], strict=True, skipinitialspace=True)
  except csv.Error as error:
    raise UserError(f"{place}: not CSV ({error}): {quoted(line)}") from error
  return [field.strip() for field in fields]


def _known() -> str:
  """Returns the names of all columns, for messages."""
  return ", ".join(_COLUMNS)


def _check_header(header: Sequence[str], place: str) -> str:
  """Returns the name of the compute column, after checking the header."""
  for column in header:
    if column not in _COLUMNS:
      raise UserError(f"{place}: unknown column {quoted(column)}; the columns are {_known()}")
    if header.count(column) > 1:
      raise UserError(f"{place}: column {column!r} comes twice; leave one out")
  compute = [column for column in COMPUTE_COLUMNS if column in header]
  if len(compute) != 1:
    raise UserError(
      f"{place}: {len(compute)} columns of compute; give one of {' and '.join(COMPUTE_COLUMNS)}"
    )
  if "name" not in header:
    raise UserError(f"{place}: no column 'name'; add it")
  return compute[0]


def _run(fields: Mapping[str, str], compute_column: str, place: str) -> Run:
  """Returns one line's run, checked."""
  if not fields["name"]:
    raise UserError(f"{place}: name is empty; name the network")
  if not fields["name"].isprintable() or len(fields["name"]) > _NAME_CHARACTERS_MAX:
    raise UserError(
      f"{place}: name={quoted(fields['name'])}: must be at most {_NAME_CHARACTERS_MAX} printable "
      "characters"
    )
  numbers = {column: _number(fields.get(column, ""), column, place) for column in _NUMBERS}
  compute = _number(fields[compute_column], compute_column, place)
  if compute is None:
    raise UserError(f"{place}: {compute_column} is empty; every run needs it")
  if numbers["loss_nats"] is None and numbers["top1_error_percent"] is None:
    raise UserError(
      f"{place}: neither loss_nats nor top1_error_percent; give one or leave the run out"
    )
  if numbers["loss_nats"] is not None:
    for column in ("parameters", "epochs"):
      if numbers[column] is None:
        raise UserError(f"{place}: {column} is empty; a run with loss_nats needs it")
  error_percent = numbers["top1_error_percent"]
  if error_percent is not None and error_percent > 100:
    raise UserError(f"{place}: top1_error_percent={error_percent:g}: must be at most 100")
  return Run(name=fields["name"], compute=compute, place=place, **numbers)


def _number(text: str, column: str, place: str) -> float | None:
  """Returns the number in a field; None if the field is empty."""
  if not text:
    return None
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  # All quantities are drawn and fitted on logarithmic axes.
  if not (math.isfinite(value) and value > 0):
    raise UserError(f"{place}: {column}={quoted(text)}: must be a number above 0")
  low, high = _LOSS_RANGE if column == "loss_nats" else _RANGE
  if not low <= value <= high:
    raise UserError(
      f"{place}: {column}={quoted(text)}: must be from {low:g} to {high:g}; is its unit right?"
    )
  return value


def _check_sizes(runs: Iterable[Run]) -> None:
  """Raises UserError if runs of one network have different numbers of parameters."""
  first: dict[str, Run] = {}
  for run in runs:
    if run.parameters is None:
      continue
    other = first.setdefault(run.name, run)
    if other.parameters != run.parameters:
      raise UserError(
        f"{run.place}: {run.name!r} has parameters={run.parameters:.0f}, but "
        f"{other.parameters:.0f} in {other.place}; give networks of two sizes two names"
      )
