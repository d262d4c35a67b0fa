r"""Ranks pre-trained networks by the accuracy that they should have after fine-tuning.

    python -m train.choose_checkpoint --finetuned=CSV [--finetuned=CSV ...] [--candidates=CSV ...]
        [--parameters_max=N] [--json=OUT] [--plot=PNG]

learns from runs that were fine-tuned, which have `top1_error_percent` in tables as
`train.scaling.run_table` describes them (those that `train.finetune_sweep` writes, or the paper's),
and ranks the candidates, runs of such tables that need no error; without candidates, the fine-tuned
ones themselves, each predicted by the law of the other networks.

Of the laws in `train.scaling.finetuning_law`, the one is taken that puts the fewest pairs in the
wrong order when it predicts networks that it does not know; all are shown beside the order of the
pre-training loss.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags
from matplotlib.figure import Figure

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from train.report.figure import COLORS, GRAY, new_plot, plain_log_axis
from train.report.output import save_figure, write_json
from train.report.table import format_table
from train.scaling.finetuning_law import (
  CONFIDENCE,
  KINDS,
  Check,
  Kind,
  Law,
  check,
  check_lowest_loss,
  fit,
  is_known,
)
from train.scaling.run_table import Run, read_runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked:
  """A candidate.

  Attributes:
    run: of the table.
    error_percent: predicted top-1 error after fine-tuning.
    interval_percent: in which it lies with `CONFIDENCE`; None for what was fine-tuned already.
  """

  run: Run
  error_percent: float
  interval_percent: tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """What was found.

  Attributes:
    law: that ranks.
    checks: of all kinds of laws that the tables allow, the order by loss first.
    finetuned: runs that were learned from.
    ranked: best first.
  """

  law: Law
  checks: tuple[Check, ...]
  finetuned: tuple[Run, ...]
  ranked: tuple[Ranked, ...]


def choose(finetuned: Sequence[Run], candidates: Sequence[Run]) -> Choice:
  """Learns and ranks.

  Args:
    finetuned: runs with a loss, a size and an error after fine-tuning.
    candidates: runs with a loss and a size; empty ranks the fine-tuned ones.

  Raises:
    UserError: there are too few runs, or of fewer than three networks.
  """
  kinds = [kind for kind in KINDS if all(is_known(kind, run) for run in (*finetuned, *candidates))]
  checks = [found for kind in kinds if (found := check(kind, finetuned))]
  if not checks:
    networks = len({run.name for run in finetuned})
    raise UserError(
      f"{len(finetuned)} fine-tuned runs of {networks} networks are too few to learn from; give "
      "four runs or more, of three networks or more, with loss_nats and parameters"
    )
  best = min(checks, key=lambda one: (one.wrong_pairs, one.mean_error))
  law = fit(best.kind, finetuned)
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
    checks=(check_lowest_loss(finetuned), *checks),
    finetuned=tuple(finetuned),
    ranked=tuple(sorted(ranked, key=lambda one: one.error_percent)),
  )


def as_text(choice: Choice) -> str:
  """Tables for a terminal."""
  law = choice.law
  exponents = ", ".join(
    f"{name} ^{exponent:.3f} (standard error {error:.3f})"
    for name, exponent, error in zip(
      law.kind.quantities, law.exponents, law.exponent_errors, strict=True
    )
  )
  checks = [
    (
      label(found.kind),
      "-" if found.mean_error is None else f"{found.mean_error:.1%}",
      f"{found.wrong_pairs} of {found.pairs}",
      f"{found.first_percent:.2f} %",
    )
    for found in choice.checks
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
  best = choice.checks[0].best_percent
  return "\n\n".join(
    [
      f"{len(choice.finetuned)} fine-tuned runs of "
      f"{len({run.name for run in choice.finetuned})} networks; the best has {best:.2f} % errors.\n"
      "Each network predicted from the others:",
      format_table(checks, ("by", "mean error", "pairs in wrong order", "the first one has")),
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
  """For people."""
  return "order of pre-training loss" if kind is None else kind.label


def as_json(choice: Choice) -> dict[str, Any]:
  """Everything that is printed."""
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
      for found in choice.checks
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


def draw(choice: Choice) -> Figure | None:
  """True error against predicted error, a color for each network; None if no error is known."""
  known = [one for one in choice.ranked if one.run.top1_error_percent is not None]
  if not known:
    return None
  figure, axes = new_plot(
    f"Error after fine-tuning, predicted by {label(choice.law.kind)}",
    "predicted top-1 error (%)",
    "top-1 error (%)",
    inches=(6, 5),
  )
  values = [value for one in known for value in (one.error_percent, one.run.top1_error_percent)]
  ends = (min(values), max(values))
  axes.plot(ends, ends, color=GRAY, linewidth=0.8)
  for index, name in enumerate(dict.fromkeys(one.run.name for one in known)):
    own = [one for one in known if one.run.name == name]
    axes.plot(
      [one.error_percent for one in own],
      [one.run.top1_error_percent for one in own],
      "o",
      markersize=5,
      color=COLORS[index % len(COLORS)],
      label=name,
    )
  # As the laws are: equal factors are equal distances.
  axes.set(xscale="log", yscale="log")
  for axis in (axes.xaxis, axes.yaxis):
    plain_log_axis(axis)
  axes.legend(frameon=False, fontsize="small")
  return figure


def main(arguments: list[str]) -> None:
  """Prints the tables and writes what the flags ask for."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  finetuned = [
    run
    for run in read_runs(values.finetuned).runs
    if run.top1_error_percent is not None and run.loss_nats is not None
  ]
  candidates = [
    run
    for run in (read_runs(values.candidates).runs if values.candidates else ())
    if run.loss_nats is not None
  ]
  if values.parameters_max is not None:
    candidates = [run for run in candidates or finetuned if run.parameters <= values.parameters_max]
    if not candidates:
      raise UserError(f"--parameters_max={values.parameters_max}: no network is as small")
  choice = choose(finetuned, candidates)
  print(as_text(choice))
  write_json("json", values.json, as_json(choice))
  if figure := draw(choice):
    save_figure("plot", values.plot, figure)


def _define_flags() -> None:
  flags.DEFINE_multi_string("finetuned", None, "CSV file of runs to learn from.", required=True)
  flags.DEFINE_multi_string("candidates", None, "CSV file of runs to rank; default: the same.")
  flags.DEFINE_integer("parameters_max", None, "Leave larger networks out.", lower_bound=1)
  flags.DEFINE_string("json", None, "Write everything to this file too.")
  flags.DEFINE_string("plot", None, "Draw true against predicted error to this PNG file.")


if __name__ == "__main__":
  _define_flags()
  run_main(main)
