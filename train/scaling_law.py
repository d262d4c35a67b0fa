r"""Scaling laws of runs: what more compute buys, and how to split it between size and epochs.

    python -m train.scaling_law --runs=paper_a_nfnets --runs=paper_a_finetuned \
        --hold_out_epochs=2 [--predict_compute=C] [--json=OUT] [--plots=FOLDER]

Reads tables of runs (`train/scaling/run_table.py` describes the columns; those above are paper A's
runs) and prints

- loss as a power of compute, with and without an irreducible loss, for all runs and for those that
  are best for what they cost, and as a joint law of size and epochs;
- by which powers of compute the optimal size and number of epochs grow, in three ways;
- losses, sizes and epochs to expect for --predict_compute, by default four times the most expensive
  run;
- outliers: runs that do not fit what the other runs predict;
- how well runs of more than --hold_out_epochs epochs are predicted from the others.

All come with 95 % intervals from resamples of the runs: for 36 runs, 1,000 resamples take half a
minute, and as long again for held-out runs. Paper A draws a line through its losses but gives no
number for its slope; its statements about the optimum are printed beside what its points give.
"""

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.system.paths import define_path
from train.report.output import importing_matplotlib, print_and_write, write_json
from train.scaling.analysis import analyze
from train.scaling.analysis_json import as_json
from train.scaling.analysis_text import as_text
from train.scaling.run_table import read_runs


def main(arguments: list[str]) -> None:
  """Prints the tables and writes what the flags ask for."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  analysis = analyze(
    read_runs(values.runs),
    resamples=values.resamples,
    seed=values.seed,
    budgets=values.predict_compute or (),
    hold_out_epochs=values.hold_out_epochs,
  )

  def write_all_quantities() -> None:
    # Computed only on request: the intervals of all quantities take seconds.
    if values.json:
      write_json("json", values.json, as_json(analysis))

  def draw_plots() -> None:
    if values.plots:
      with importing_matplotlib():
        from train.scaling.analysis_plots import write_plots

      print()
      for path in write_plots(values.plots, analysis):
        print(f"plot: {path}")

  print_and_write(as_text(analysis), write_all_quantities, draw_plots)


def _define_flags() -> None:
  define_path(
    "runs",
    None,
    "CSV file of runs, or a name such as paper_a_nfnets; may be repeated.",
    use="read",
    multiple=True,
    required=True,
  )
  flags.DEFINE_multi_float(
    "predict_compute", None, "Compute to predict for; default: four times the most expensive run."
  )
  flags.DEFINE_integer("resamples", 1000, "Resamples for the intervals.", lower_bound=0)
  flags.DEFINE_integer("seed", 0, "Seed of the resamples.", lower_bound=0)
  flags.DEFINE_float("hold_out_epochs", None, "Predict runs of more epochs from the others.")
  define_path("json", None, "Also write all results to this file.", use="write file")
  define_path("plots", None, "Write plots to this folder.", use="write folder")


if __name__ == "__main__":
  _define_flags()
  run_main(main)
