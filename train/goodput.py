"""Prints where a run's time went: start-up, compiling, data, steps, checkpoints, lost work.

python -m train.goodput --workdir=DIR
"""

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from train.run.records.goodput import as_text, read_goodput


def main(arguments: list[str]) -> None:
  """Prints the table of the run in --workdir."""
  refuse_arguments(arguments)
  print(as_text(read_goodput(flags.FLAGS.workdir)))


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  run_main(main)
