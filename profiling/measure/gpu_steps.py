"""Measures a training step on a GPU: this project's in JAX, timm's in PyTorch.

Each is measured in a process of its own.
"""

import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import train.configs
from nfnet.system.module_process import module_command, module_environment
from profiling.measure.child_process import run_for_json

BATCH_SIZE = 128
PIXELS = 224
TIMM_NAMES = {"F0": "dm_nfnet_f0", "F3": "dm_nfnet_f3"}
"""timm's names of the measured variants."""
CONFIG = pathlib.Path(train.configs.__file__).parent / "imagenet.py"


def has_gpu() -> bool:
  """Returns whether JAX finds a GPU; asks in a child process, because JAX would hold GPU memory."""
  result = subprocess.run(
    [sys.executable, "-P", "-c", "import jax; print(jax.devices()[0].platform)"],
    capture_output=True,
    text=True,
    check=False,
  )
  return result.stdout.strip().endswith("gpu")


def overrides(variant: str) -> list[str]:
  """Returns the arguments that make `CONFIG` train the network that timm's step trains."""
  return [
    f"--config.model.variant={variant}",
    "--config.model.stochastic_depth_rate=0",
    "--config.model.block_execution=unrolled",
    "--config.optimizer.ema_decay=none",
    "--config.mixing.mixup_alpha=none",
    "--config.mixing.cutmix=false",
    f"--config.data.batch_size={BATCH_SIZE}",
    f"--config.data.train_pixels={PIXELS}",
  ]


def measure_jax(variant: str, steps: int) -> dict[str, Any]:
  """Returns `profiling.trace`'s figures of this project's step, or {"not_measured": why}."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "trace.json"
    return run_for_json(
      [
        *module_command("profiling.trace", f"--config={CONFIG}", f"--steps={steps}"),
        *(f"--folder={folder}/profile", f"--json={path}", *overrides(variant)),
      ],
      environment=module_environment(),
      json_text=lambda _: path.read_text(),
    )


def measure_torch(variant: str, steps: int) -> dict[str, Any]:
  """Returns `torch_timm`'s figures of timm's step, or {"not_measured": why}."""
  return run_for_json(
    [
      *module_command("profiling.measure.torch_timm", f"--model={TIMM_NAMES[variant]}"),
      *(f"--steps={steps}", f"--batch_size={BATCH_SIZE}", f"--pixels={PIXELS}"),
    ],
    environment=module_environment(),
  )
