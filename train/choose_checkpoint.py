r"""Ranks pre-trained networks by the accuracy that they should have after fine-tuning.

    python -m train.choose_checkpoint --finetuned=CSV [--finetuned=CSV ...] [--candidates=CSV ...]
        [--parameters_max=N] [--json=OUT] [--plot=PNG]

It learns from fine-tuned runs, which are rows with a `top1_error_percent` in tables that
`train.finetune_sweep` writes or in the paper's (`train.scaling.run_table` describes the columns).
It ranks the candidates, which are rows of such tables and need no error. Without candidates, it
ranks the fine-tuned runs themselves, each predicted from the other networks.
`train.scaling.checkpoint_choice` describes the method.
"""

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from nfnet.system.paths import define_path
from train.report.output import print_and_write, save_figure, write_json
from train.scaling.checkpoint_choice import as_json, as_text, choose, draw
from train.scaling.run_table import read_runs


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
      raise UserError(
        f"--parameters_max={values.parameters_max}: all networks are larger; give a larger number"
      )
  choice = choose(finetuned, candidates)
  print_and_write(
    as_text(choice),
    lambda: write_json("json", values.json, as_json(choice)),
    lambda: save_figure("plot", values.plot, lambda: draw(choice)),
  )


def _define_flags() -> None:
  define_path(
    "finetuned", None, "CSV file of runs to learn from.", use="read", multiple=True, required=True
  )
  define_path(
    "candidates",
    None,
    "CSV file of runs to rank; default: those of --finetuned.",
    use="read",
    multiple=True,
  )
  flags.DEFINE_integer("parameters_max", None, "Leave larger networks out.", lower_bound=1)
  define_path("json", None, "Also write all results to this file.", use="write file")
  define_path(
    "plot",
    None,
    "Draw true against predicted error to this PNG file.",
    use="write file",
    suffix=".png",
  )


if __name__ == "__main__":
  _define_flags()
  run_main(main)
