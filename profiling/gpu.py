r"""Compares the training speed of F0 and F3 on this machine's GPU with timm's in PyTorch.

    python -m profiling.gpu [--steps=20] [--json=OUT]

The four measurements run one after another, each in a process of its own. `profiling.trace`
measures this project's plain-JAX ops, `profiling.measure.torch_timm` timm's dm_nfnet (bfloat16
autocast, channels last, torch.compile). The batch is 128 images of 224 px that are already on the
device. If there is no GPU, or torch and timm are not installed, a row says "not measured".
"""

from typing import Any

from absl import flags
from tqdm import tqdm

from nfnet.command_line import refuse_arguments, run_main
from profiling.compile import command_flags
from profiling.measure.gpu_steps import (
  BATCH_SIZE,
  PIXELS,
  TIMM_NAMES,
  has_gpu,
  measure_jax,
  measure_torch,
)
from train.report.output import print_and_write, write_json
from train.report.table import format_table


def as_text(rows: list[dict[str, Any]]) -> str:
  """Formats the measurements for a terminal."""
  table = []
  for row in rows:
    ours, theirs = row["this_project"], row["timm"]
    both = "images_per_second" in ours and "images_per_second" in theirs
    table.append(
      (
        row["variant"],
        _speed(ours),
        _speed(theirs),
        f"{ours['images_per_second'] / theirs['images_per_second']:.2f}" if both else "",
        ours.get("device_kind", ""),
      )
    )
  return "\n".join(
    [
      f"Training on one GPU, {BATCH_SIZE} images of {PIXELS} px, bfloat16, images/s, measured:",
      format_table(table, ("variant", "this project", "timm (PyTorch)", "ratio", "card")),
    ]
  )


def _speed(figures: dict[str, Any]) -> str:
  if "images_per_second" in figures:
    return f"{figures['images_per_second']:.0f}"
  return f"not measured: {figures['not_measured']}"


def main(arguments: list[str]) -> None:
  """Measures what can be measured here and prints it."""
  refuse_arguments(arguments)
  steps = flags.FLAGS.steps
  not_measured = {"not_measured": "there is no GPU"}
  found = has_gpu()
  rows = [
    {
      "variant": variant,
      "this_project": measure_jax(variant, steps) if found else not_measured,
      "timm": measure_torch(variant, steps) if found else not_measured,
    }
    for variant in tqdm(TIMM_NAMES, desc="networks", leave=False, disable=None)
  ]
  figures = {
    "what": "measured" if found else "not measured",
    "batch_size": BATCH_SIZE,
    "pixels": PIXELS,
    "rows": rows,
  }
  print_and_write(as_text(rows), lambda: write_json("json", flags.FLAGS.json, figures))


if __name__ == "__main__":
  flags.DEFINE_integer("steps", 20, "Steps to time.", lower_bound=1)
  command_flags.define_json()
  run_main(main)
