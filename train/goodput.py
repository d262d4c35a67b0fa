"""Prints where a run's time went: start-up, compiling, data, steps, checkpoints, lost work.

python -m train.goodput --workdir=DIR
"""

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.system.paths import define_path
from train.run.records.goodput import as_text, read_goodput
from train.run.records.staging import books_to_read


def main(arguments: list[str]) -> None:
  """Prints the table of the run in --workdir."""
  refuse_arguments(arguments)
  with books_to_read(flags.FLAGS.workdir) as folder:
    print(as_text(read_goodput(folder)))


if __name__ == "__main__":
  define_path("workdir", None, "Folder of the run.", use="read", required=True, buckets=True)
  run_main(main)
