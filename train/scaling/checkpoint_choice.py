"""The choice of the network to fine-tune: candidates ranked by their predicted error.

It takes the law in `train.scaling.laws.finetuning_law` that puts the fewest pairs of runs in the
wrong order when it predicts networks that it was not fitted to. The text shows all laws, and the
order of the pre-training loss for comparison.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nfnet.errors import UserError, format_count
from train.report.colors import COLORS
from train.report.table import format_table
from train.scaling.laws.finetuning_law import (
  CONFIDENCE,
  KINDS,
  CrossValidation,
  FinetuningLaw,
  Kind,
  cross_validate,
  fit_finetuning_law,
  is_known,
  validate_loss_order,
)
from train.scaling.run_table import Run

if TYPE_CHECKING:
  from matplotlib.figure import Figure

FINETUNED_MAX = 2_000
"""Most runs to learn from; the time grows with their square, as each network is left out once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked:
  """A candidate with its predicted error.

  Attributes:
    run: run of the table.
    error_percent: predicted top-1 error after fine-tuning.
    interval_percent: interval that holds the error with `CONFIDENCE`; None for a network that was
      fine-tuned already.
  """

  run: Run
  error_percent: float
  interval_percent: tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """The ranked candidates, and how the ranking came about.

  Attributes:
    law: law that ranks.
    validations: validation of the order by loss, then of each kind of law whose quantities the
      tables have.
    finetuned: runs that the law was fitted to.
    ranked: candidates, best first.
  """

  law: FinetuningLaw
  validations: tuple[CrossValidation, ...]
  finetuned: tuple[Run, ...]
  ranked: tuple[Ranked, ...]


def choose(finetuned: Sequence[Run], candidates: Sequence[Run]) -> Choice:
  """Fits the laws and ranks the candidates by the best one.

  Args:
    finetuned: runs with a loss, a size and an error after fine-tuning.
    candidates: runs with a loss and a size; empty ranks the fine-tuned ones, each predicted by the
      law of the other networks.

  Raises:
    UserError: there are too few runs or too many, or runs of fewer than three networks.
  """
  if len(finetuned) > FINETUNED_MAX:
    raise UserError(
      f"{len(finetuned):,} fine-tuned runs, where {FINETUNED_MAX:,} are the most; give fewer, such "
      "as the best of each network"
    )
  kinds = [kind for kind in KINDS if all(is_known(kind, run) for run in (*finetuned, *candidates))]
  validations = [found for kind in kinds if (found := cross_validate(kind, finetuned))]
  if not validations:
    raise UserError(
      f"{_counted(finetuned)}: too few to learn from; give four runs or more, of three "
      "networks or more, with loss_nats and parameters"
    )
  best = min(validations, key=lambda one: (one.wrong_pairs, one.mean_error))
  law = fit_finetuning_law(best.kind, finetuned)
  if candidates:
    ranked = [
      Ranked(
        run=run, error_percent=law.error_percent(run), interval_percent=law.interval_percent(run)
      )
      for run in candidates
    ]
  else:
    ranked = [
      Ranked(run=run, error_percent=error_percent, interval_percent=None)
      for run, error_percent in zip(finetuned, best.predictions, strict=True)
    ]
  return Choice(
    law=law,
    validations=(validate_loss_order(finetuned), *validations),
    finetuned=tuple(finetuned),
    ranked=tuple(sorted(ranked, key=lambda one: one.error_percent)),
  )


def as_text(choice: Choice) -> str:
  """Returns the tables for a terminal."""
  law = choice.law
  exponents = ", ".join(
    f"{name} ^{exponent:.3f} (standard error {error:.3f})"
    for name, exponent, error in zip(
      law.kind.quantities, law.exponents, law.exponent_errors, strict=True
    )
  )
  validations = [
    (
      label(found.kind),
      "-" if found.mean_error is None else f"{found.mean_error:.1%}",
      f"{found.wrong_pairs} of {found.pairs}",
      f"{found.first_percent:.2f} %",
    )
    for found in choice.validations
  ]
  ranked = [
    (
      str(place),
      one.run.name,
      f"{one.run.epochs:g}",
      "" if one.run.learning_rate is None else f"{one.run.learning_rate:g}",
      f"{one.run.loss_nats:.3f}",
      f"{one.error_percent:.2f} %",
      "" if one.interval_percent is None else "{:.2f} to {:.2f}".format(*one.interval_percent),
      "" if one.run.top1_error_percent is None else f"{one.run.top1_error_percent:.2f} %",
    )
    for place, one in enumerate(choice.ranked, start=1)
  ]
  best = choice.validations[0].best_percent
  return "\n\n".join(
    [
      f"{_counted(choice.finetuned)}; the best has {best:.2f} % errors.\n"
      "Each network predicted from the others:",
      format_table(validations, ("by", "mean error", "pairs in wrong order", "the first one has")),
      f"Ranked by {label(law.kind)}: error after fine-tuning ~ {exponents}",
      format_table(
        ranked,
        (
          *("", "network", "epochs", "rate", "pre-training loss", "predicted error"),
          *(f"{CONFIDENCE:.0%}", "true error"),
        ),
      ),
    ]
  )


def label(kind: Kind | None) -> str:
  """Returns the name of a kind of law for people."""
  return "order of pre-training loss" if kind is None else kind.label


def as_json(choice: Choice) -> dict[str, Any]:
  """Returns everything that the tables show."""
  law = choice.law
  return {
    "law": {
      "by": law.kind.label,
      "exponents": dict(zip(law.kind.quantities, law.exponents, strict=True)),
      "exponent_standard_errors": dict(zip(law.kind.quantities, law.exponent_errors, strict=True)),
      "constant": law.constant,
      "residual_deviation": law.residual_deviation,
    },
    "checks": [
      {
        "by": label(found.kind),
        "mean_error": found.mean_error,
        "wrong_pairs": found.wrong_pairs,
        "pairs": found.pairs,
        "first_error_percent": found.first_percent,
        "best_error_percent": found.best_percent,
      }
      for found in choice.validations
    ],
    "ranked": [
      {
        "name": one.run.name,
        "epochs": one.run.epochs,
        "learning_rate": one.run.learning_rate,
        "loss_nats": one.run.loss_nats,
        "predicted_error_percent": one.error_percent,
        "interval_percent": one.interval_percent,
        "top1_error_percent": one.run.top1_error_percent,
      }
      for one in choice.ranked
    ],
  }


def draw(choice: Choice) -> "Figure | None":
  """Draws true against predicted error, a color for each network; None if no error is known."""
  known = [one for one in choice.ranked if one.run.top1_error_percent is not None]
  if not known:
    return None
  # Most calls of the command draw nothing.
  from train.report.figure import add_legend, log_axis, new_plot, plain_text

  figure, axes = new_plot(
    f"Error after fine-tuning, predicted by {label(choice.law.kind)}",
    "predicted top-1 error (%)",
    "top-1 error (%)",
    inches=(6, 5),
  )
  values = [value for one in known for value in (one.error_percent, one.run.top1_error_percent)]
  ends = (min(values), max(values))
  axes.plot(ends, ends, color="#777777", linewidth=0.8)
  # In the order of the tables, so that a network has its color of the plots of the laws.
  runs = (*choice.finetuned, *(one.run for one in known))
  for index, name in enumerate(dict.fromkeys(run.name for run in runs)):
    own = [one for one in known if one.run.name == name]
    if not own:
      continue
    axes.plot(
      [one.error_percent for one in own],
      [one.run.top1_error_percent for one in own],
      "o",
      markersize=5,
      color=COLORS[index % len(COLORS)],
      label=plain_text(name),
    )
  # Logarithmic, as the laws are, so that equal factors are equal distances.
  for axis in (axes.xaxis, axes.yaxis):
    log_axis(axis)
  add_legend(figure)
  return figure


def _counted(runs: Sequence[Run]) -> str:
  """Returns how many runs there are of how many networks."""
  networks = format_count(len({run.name for run in runs}), "network")
  return f"{format_count(len(runs), 'fine-tuned run')} of {networks}"
