"""Accuracy of a trained network on held-out images.

    python -m train.evaluate --workdir=DIR [--config.FIELD=VALUE ...]

evaluates the newest checkpoint of a workdir (or one checkpoint's folder) and prints loss, top-1 and
top-5 of the moving average, where one was kept, and of the parameters themselves. Another data set
or resolution: --config.data.path=DIR, --config.data.evaluation_pixels=N.
"""

from absl import flags

from nfnet.errors import UserError, run_main
from train import processes
from train.config_file import parse_arguments
from train.evaluation import evaluate_checkpoint
from train.progress import format_table

_WORKDIR = flags.DEFINE_string("workdir", None, "A run's workdir, or one checkpoint's folder.")


def main(overrides: list[str]) -> None:
  """Prints a table."""
  if _WORKDIR.value is None:
    raise UserError("--workdir=DIR is missing; name a run's workdir or one checkpoint's folder")
  with processes.joined():
    results = evaluate_checkpoint(_WORKDIR.value, overrides[1:])
    if not processes.is_first():
      return
  rows = [
    (name, f"{r['examples']:.0f}", f"{r['loss']:.4f}", f"{r['top1']:.2%}", f"{r['top5']:.2%}")
    for name, r in results.items()
  ]
  print(format_table(rows, ("network", "images", "loss", "top-1", "top-5")))


if __name__ == "__main__":
  run_main(main, flags_parser=parse_arguments)
