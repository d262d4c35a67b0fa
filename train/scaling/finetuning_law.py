"""What the error after fine-tuning is, from what is known of a checkpoint before.

The lowest pre-training loss is not always the best start: paper A
(https://arxiv.org/abs/2310.16764, section 3) found that slightly larger models, trained for
slightly fewer epochs, fine-tune better than their pre-training loss says. A law here is a power
law,

    error = constant * product of quantity^exponent,

fitted to the logarithms by least squares; which quantities it has makes its kind (`KINDS`). How
good a law is, is asked of networks that it does not know (`check`): all runs of one network are
predicted by the law of the other networks, as a network that was not fine-tuned yet is.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from train.scaling.run_table import Run

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """What a law goes by.

  Attributes:
    label: for people.
    quantities: of `QUANTITIES`.
  """

  label: str
  quantities: tuple[str, ...]


QUANTITIES: dict[str, Callable[[Run], float | None]] = {
  "loss": lambda run: run.loss_nats,
  "parameters": lambda run: run.parameters,
  "probe": lambda run: run.probe_squared_error,
}
KINDS = (
  Kind(label="loss alone", quantities=("loss",)),
  Kind(label="loss and size", quantities=("loss", "parameters")),
  Kind(label="probe alone", quantities=("probe",)),
  Kind(label="probe and size", quantities=("probe", "parameters")),
  Kind(label="probe, loss and size", quantities=("probe", "loss", "parameters")),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
  """A fitted law.

  Attributes:
    kind: of it.
    constant: logarithm of the error where all quantities are 1.
    exponents: of each quantity.
    exponent_errors: their standard errors.
    runs: that it was fitted to.
    residual_deviation: of log(error), with the freedom that the fit leaves.
    covariance: of constant and exponents, [1 + quantities, 1 + quantities], in units of the
      residual variance.
  """

  kind: Kind
  constant: float
  exponents: tuple[float, ...]
  exponent_errors: tuple[float, ...]
  runs: int
  residual_deviation: float
  covariance: np.ndarray

  def error_percent(self, run: Run) -> float:
    """Predicted top-1 error after fine-tuning."""
    return float(np.exp(_row(self.kind, run) @ np.array([self.constant, *self.exponents])))

  def interval_percent(self, run: Run) -> tuple[float, float]:
    """In which the error of such a run lies with `CONFIDENCE`, were deviations independent."""
    row = _row(self.kind, run)
    deviation = self.residual_deviation * np.sqrt(1 + row @ self.covariance @ row)
    freedom = self.runs - len(row)
    width = float(np.exp(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * deviation))
    middle = self.error_percent(run)
    return middle / width, middle * width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
  """Of predictions for networks that the law did not know.

  Attributes:
    kind: of the law; None is the order of the pre-training loss, which predicts no error.
    predictions: of each run, in percent; or its loss.
    mean_error: mean of |predicted / true - 1|; None where no error is predicted.
    wrong_pairs: pairs of runs that come in the wrong order.
    pairs: that have an order.
    first_percent: true error of the run that comes first.
    best_percent: of the best one.
  """

  kind: Kind | None
  predictions: tuple[float, ...]
  mean_error: float | None
  wrong_pairs: int
  pairs: int
  first_percent: float
  best_percent: float


def is_known(kind: Kind, run: Run) -> bool:
  """Whether the run has all quantities of the kind."""
  return all(QUANTITIES[name](run) is not None for name in kind.quantities)


def fit(kind: Kind, runs: Sequence[Run]) -> Law | None:
  """Fits a law.

  Args:
    kind: of the law.
    runs: with its quantities and an error after fine-tuning.

  Returns:
    None if they are too few or too much alike to tell the exponents.
  """
  columns = 1 + len(kind.quantities)
  if len(runs) <= columns:
    return None
  design = np.stack([_row(kind, run) for run in runs])
  if np.linalg.matrix_rank(design) < columns:
    return None
  errors = np.log([run.top1_error_percent for run in runs])
  values, *_ = np.linalg.lstsq(design, errors, rcond=None)
  freedom = len(runs) - columns
  deviation = float(np.sqrt(np.sum((errors - design @ values) ** 2) / freedom))
  covariance = np.linalg.inv(design.T @ design)
  return Law(
    kind=kind,
    constant=float(values[0]),
    exponents=tuple(map(float, values[1:])),
    exponent_errors=tuple(map(float, deviation * np.sqrt(np.diag(covariance)[1:]))),
    runs=len(runs),
    residual_deviation=deviation,
    covariance=covariance,
  )


def check(kind: Kind, runs: Sequence[Run]) -> Check | None:
  """Predicts the runs of each network from those of the others.

  Args:
    kind: of the law.
    runs: as for `fit`.

  Returns:
    None if some network's runs cannot be predicted, for want of others.
  """
  laws = {
    name: fit(kind, [run for run in runs if run.name != name])
    for name in {run.name for run in runs}
  }
  if None in laws.values():
    return None
  predictions = [laws[run.name].error_percent(run) for run in runs]
  true = np.array([run.top1_error_percent for run in runs])
  mean_error = float(np.mean(np.abs(np.array(predictions) / true - 1)))
  return _check(kind, predictions, runs, mean_error)


def check_lowest_loss(runs: Sequence[Run]) -> Check:
  """What becomes of taking pre-trained networks in the order of their losses.

  Args:
    runs: with a loss and an error after fine-tuning.
  """
  return _check(None, [run.loss_nats for run in runs], runs, None)


def _check(
  kind: Kind | None, predictions: Sequence[float], runs: Sequence[Run], mean_error: float | None
) -> Check:
  true = np.array([run.top1_error_percent for run in runs])
  order = np.sign(true[:, None] - true)
  predicted = np.array(predictions)
  found = np.sign(predicted[:, None] - predicted)
  return Check(
    kind=kind,
    predictions=tuple(map(float, predictions)),
    mean_error=mean_error,
    wrong_pairs=int(np.sum(order * found < 0)) // 2,
    pairs=int(np.sum(order != 0)) // 2,
    first_percent=float(true[np.argmin(predicted)]),
    best_percent=float(true.min()),
  )


def _row(kind: Kind, run: Run) -> np.ndarray:
  return np.array([1.0, *(np.log(QUANTITIES[name](run)) for name in kind.quantities)])
