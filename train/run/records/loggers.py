"""The interface of everything that gets the records of a run, and the flag for loggers of users.

    python -m train.pretrain ... --logger=my_loggers:make_logger --logger=PATH.py:OtherLogger

`make_logger` is a function or class that is called with a `Run` and returns a `Logger`.
metrics.jsonl and TensorBoard's files are written by loggers too (`train.run.records.metrics`,
`train.run.records.tensorboard`). What a user names runs beside the training
(`train.run.records.background_logger`), which never waits for it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from absl import flags

from nfnet.errors import UserError, shortened
from train.config.own_functions import load_function

FLAG = "logger"


@runtime_checkable
class Logger(Protocol):
  """Receives the records of a run, in the order in which they are made."""

  def write(self, record: Mapping[str, Any]) -> None:
    """Takes one record.

    Args:
      record: "step" (int), "kind" ("train", "evaluation" or "event") and further values, which are
        text, booleans and numbers; a number may be NaN or infinite.
    """

  def close(self) -> None:
    """Ends the record; nothing is called afterwards."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The run whose records a logger gets.

  Attributes:
    id: random name of the run, which it keeps when it resumes (32 hexadecimal digits).
    name: `name` of its experiment.
    workdir: folder of the run.
    configuration: fields of its experiment, as JSON values: {"model": {"variant": "F0", ...}, ...}.
    total_steps: number of steps of the whole run.
    resumed_step: step after which the run goes on; 0 if it begins. Later steps that an earlier
      start has done are done again, and so are their records.
  """

  id: str
  name: str
  workdir: str
  configuration: Mapping[str, Any]
  total_steps: int
  resumed_step: int


MakeLogger = Callable[[Run], Logger]


def define_loggers() -> flags.FlagHolder[list[str]]:
  """Defines --logger.

  Returns:
    Holder of the references that `load_loggers` takes.
  """
  return flags.DEFINE_multi_string(
    "logger",
    [],
    "MODULE:FUNCTION or PATH.py:FUNCTION of a logger of your own, such as one for W&B.",
  )


def load_loggers(references: Iterable[str]) -> dict[str, MakeLogger]:
  """Returns the functions that --logger names, by these names.

  Raises:
    UserError: there is no such function, its module cannot be imported, or one is named twice.
  """
  references = list(references)
  for reference in references:
    if references.count(reference) > 1:
      raise UserError(f"--{FLAG}={shortened(reference)} is given twice; give it once")
  return {reference: load_function(FLAG, reference) for reference in references}


def logger_arguments(references: Iterable[str]) -> tuple[str, ...]:
  """Returns the arguments that hand the loggers on to another command."""
  return tuple(f"--{FLAG}={reference}" for reference in references)
