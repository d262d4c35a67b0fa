r"""Training speed of F0 and F3 on this machine's GPU, beside timm's in PyTorch.

    python -m profiling.gpu [--steps=20] [--json=OUT]

Each of the four runs in a process of its own, one after the other: this project's reference path by
`profiling.trace`, timm's dm_nfnet by `profiling.measure.torch_timm` (bfloat16 autocast, channels
last, torch.compile); 128 images of 224 px that are on the device already. Where there is no GPU, or
torch and timm are not installed, a row says "not measured".
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from absl import flags
from tqdm import tqdm

import train.configs
from nfnet.command_line import refuse_arguments, run_main
from train.report.output import write_json
from train.report.table import format_table

_BATCH_SIZE = 128
_PIXELS = 224
_MODELS = {"F0": "dm_nfnet_f0", "F3": "dm_nfnet_f3"}
_CONFIG = pathlib.Path(train.configs.__file__).parent / "imagenet.py"


def has_gpu() -> bool:
  """Whether JAX finds one; asked in another process, since JAX would keep its memory."""
  result = subprocess.run(
    [sys.executable, "-c", "import jax; print(jax.devices()[0].platform)"],
    capture_output=True,
    text=True,
    check=False,
  )
  return result.stdout.strip().endswith("gpu")


def measure_jax(variant: str, steps: int) -> dict[str, Any]:
  """The project's step: `profiling.trace`'s figures, or {"not_measured": why}."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "trace.json"
    return _run(
      [
        *("-m", "profiling.trace", f"--config={_CONFIG}", f"--steps={steps}"),
        f"--folder={folder}/profile",
        f"--json={path}",
        f"--config.model.variant={variant}",
        "--config.model.stochastic_depth_rate=0",
        "--config.model.block_execution=unrolled",
        "--config.optimizer.ema_decay=none",
        "--config.mixing.mixup_alpha=none",
        "--config.mixing.cutmix=false",
        f"--config.data.batch_size={_BATCH_SIZE}",
        f"--config.data.train_pixels={_PIXELS}",
      ],
      lambda _: path.read_text(),
    )


def measure_torch(variant: str, steps: int) -> dict[str, Any]:
  """timm's step: `profiling.measure.torch_timm`'s figures, or {"not_measured": why}."""
  return _run(
    [
      *("-m", "profiling.measure.torch_timm", f"--model={_MODELS[variant]}", f"--steps={steps}"),
      f"--batch_size={_BATCH_SIZE}",
      f"--pixels={_PIXELS}",
    ],
    lambda output: output.splitlines()[-1],
  )


def _run(arguments: list[str], result_of: Any) -> dict[str, Any]:
  process = subprocess.run(
    [sys.executable, *arguments], capture_output=True, text=True, check=False
  )
  if process.returncode:
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    return {"not_measured": lines[-1] if lines else f"exit code {process.returncode}"}
  return json.loads(result_of(process.stdout))


def as_text(rows: list[dict[str, Any]]) -> str:
  """For a terminal."""
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
      f"Training on one GPU, {_BATCH_SIZE} images of {_PIXELS} px, bfloat16, images/s, measured:",
      format_table(table, ("variant", "this project", "timm (PyTorch)", "ratio", "card")),
    ]
  )


def _speed(figures: dict[str, Any]) -> str:
  if "images_per_second" in figures:
    return f"{figures['images_per_second']:.0f}"
  return f"not measured: {figures['not_measured']}"


def main(arguments: list[str]) -> None:
  """Measures what there is and prints it."""
  refuse_arguments(arguments)
  steps = flags.FLAGS.steps
  nothing = {"not_measured": "there is no GPU"}
  found = has_gpu()
  rows = [
    {
      "variant": variant,
      "this_project": measure_jax(variant, steps) if found else nothing,
      "timm": measure_torch(variant, steps) if found else nothing,
    }
    for variant in tqdm(_MODELS, desc="networks", leave=False, disable=None)
  ]
  write_json(
    "json",
    flags.FLAGS.json,
    {
      "what": "measured" if found else "not measured",
      "batch_size": _BATCH_SIZE,
      "pixels": _PIXELS,
      "rows": rows,
    },
  )
  print(as_text(rows))


if __name__ == "__main__":
  flags.DEFINE_integer("steps", 20, "To time.", lower_bound=1)
  flags.DEFINE_string("json", None, "Write the figures to this file too.")
  run_main(main)
