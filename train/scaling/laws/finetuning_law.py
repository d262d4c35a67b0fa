"""Laws that predict the error after fine-tuning from quantities known before it.

The lowest pre-training loss is not always the best start: paper A
(https://arxiv.org/abs/2310.16764, section 3) found that slightly larger models, trained for
slightly fewer epochs, fine-tune better than their pre-training loss suggests. A law here is a power
law,

    error = constant * product of quantity^exponent,

fitted to the logarithms by least squares. The quantities define its kind (`KINDS`).
`cross_validate` measures how good a law is for new networks: all runs of one network are predicted
by the law fitted to the other networks, as for a network that has not been fine-tuned yet.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from train.scaling.run_table import Run

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """The quantities that a law predicts from.

  Attributes:
    label: name for people.
    quantities: names in `QUANTITIES`.
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
class FinetuningLaw:
  """A fitted law.

  Attributes:
    kind: kind of the law.
    constant: logarithm of the error if all quantities are 1.
    exponents: exponent of each quantity.
    exponent_errors: standard errors of the exponents.
    runs: number of runs that it was fitted to.
    residual_deviation: standard deviation of log(error) around the law.
    covariance: [1 + quantities, 1 + quantities] covariance of constant and exponents, in units of
      the residual variance.
  """

  kind: Kind
  constant: float
  exponents: tuple[float, ...]
  exponent_errors: tuple[float, ...]
  runs: int
  residual_deviation: float
  covariance: np.ndarray

  def error_percent(self, run: Run) -> float:
    """Returns the predicted top-1 error after fine-tuning."""
    return float(np.exp(_rows(self.kind, [run])[0] @ np.array([self.constant, *self.exponents])))

  def interval_percent(self, run: Run) -> tuple[float, float]:
    """Returns the `CONFIDENCE` interval of a run's error, if deviations are independent."""
    (row,) = _rows(self.kind, [run])
    deviation = self.residual_deviation * np.sqrt(1 + row @ self.covariance @ row)
    freedom = self.runs - len(row)
    width = float(np.exp(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * deviation))
    middle = self.error_percent(run)
    return middle / width, middle * width


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossValidation:
  """The quality of a law's predictions for networks that it was not fitted to.

  Attributes:
    kind: kind of the law; None for the order of the pre-training loss, which predicts no error.
    predictions: predicted error of each run in percent; the losses if `kind` is None.
    mean_error: mean of |predicted / true - 1|; None if no error is predicted.
    wrong_pairs: number of pairs of runs that come in the wrong order.
    pairs: number of pairs that have an order.
    first_percent: true error of the run that is predicted to be the best.
    best_percent: true error of the best run.
  """

  kind: Kind | None
  predictions: tuple[float, ...]
  mean_error: float | None
  wrong_pairs: int
  pairs: int
  first_percent: float
  best_percent: float


def is_known(kind: Kind, run: Run) -> bool:
  """Returns whether the run has all quantities of the kind."""
  return all(QUANTITIES[name](run) is not None for name in kind.quantities)


def fit_finetuning_law(kind: Kind, runs: Sequence[Run]) -> FinetuningLaw | None:
  """Fits a law.

  Args:
    kind: kind of the law.
    runs: runs with its quantities and an error after fine-tuning.

  Returns:
    The law; None if the runs are too few or too similar to determine the exponents.
  """
  columns = 1 + len(kind.quantities)
  if len(runs) <= columns:
    return None
  design = _rows(kind, runs)
  if np.linalg.matrix_rank(design) < columns:
    return None
  errors = np.log([run.top1_error_percent for run in runs])
  values, *_ = np.linalg.lstsq(design, errors, rcond=None)
  freedom = len(runs) - columns
  deviation = float(np.sqrt(np.sum((errors - design @ values) ** 2) / freedom))
  covariance = np.linalg.inv(design.T @ design)
  return FinetuningLaw(
    kind=kind,
    constant=float(values[0]),
    exponents=tuple(map(float, values[1:])),
    exponent_errors=tuple(map(float, deviation * np.sqrt(np.diag(covariance)[1:]))),
    runs=len(runs),
    residual_deviation=deviation,
    covariance=covariance,
  )


def cross_validate(kind: Kind, runs: Sequence[Run]) -> CrossValidation | None:
  """Predicts the runs of each network from the runs of the others.

  Args:
    kind: kind of the law.
    runs: runs with its quantities and an error after fine-tuning.

  Returns:
    The result; None if the other networks are too few to predict some network's runs.
  """
  laws = {
    name: fit_finetuning_law(kind, [run for run in runs if run.name != name])
    for name in {run.name for run in runs}
  }
  if not laws or None in laws.values():
    return None
  predictions = [laws[run.name].error_percent(run) for run in runs]
  true = np.array([run.top1_error_percent for run in runs])
  mean_error = float(np.mean(np.abs(np.array(predictions) / true - 1)))
  return _compare(kind, predictions, runs, mean_error)


def validate_loss_order(runs: Sequence[Run]) -> CrossValidation:
  """Tells how well the order of the pre-training losses predicts the order of the errors.

  Args:
    runs: runs with a loss and an error after fine-tuning.
  """
  return _compare(None, [run.loss_nats for run in runs], runs, None)


def _compare(
  kind: Kind | None, predictions: Sequence[float], runs: Sequence[Run], mean_error: float | None
) -> CrossValidation:
  """Compares the order of predictions with the order of the true errors."""
  true = np.array([run.top1_error_percent for run in runs])
  order = np.sign(true[:, None] - true)
  predicted = np.array(predictions)
  found = np.sign(predicted[:, None] - predicted)
  return CrossValidation(
    kind=kind,
    predictions=tuple(map(float, predictions)),
    mean_error=mean_error,
    wrong_pairs=int(np.sum(order * found < 0)) // 2,
    pairs=int(np.sum(order != 0)) // 2,
    first_percent=float(true[np.argmin(predicted)]),
    best_percent=float(true.min()),
  )


def _rows(kind: Kind, runs: Sequence[Run]) -> np.ndarray:
  """Returns the design matrix of runs: 1 and the logarithms of the quantities in each row."""
  values = [[1.0, *(QUANTITIES[name](run) for name in kind.quantities)] for run in runs]
  design = np.array(values)
  design[:, 1:] = np.log(design[:, 1:])
  return design
