"""Runs the demo: pre-trains on Fashion-MNIST, fine-tunes on digits, and trains from scratch too.

    python -m train.demo --workdir=DIR

All data comes with the repository and its dependencies. If the demo is interrupted and started
again, it resumes.
"""

import pathlib
import time
from typing import Any

import jax
from absl import flags

from nfnet.command_line import run_main
from nfnet.system.paths import define_path
from train.config.files import load_experiment
from train.data.manifest import MANIFEST_NAME
from train.demo_data import make_digits
from train.report.table import format_table
from train.report.units import format_duration
from train.run.initial_weights import with_new_classifier
from train.run.leases.workdir_lease import lease_on
from train.run.loop import train

_CONFIGS = pathlib.Path(__file__).parent / "configs"


def _held_out_top1(records: list[dict[str, Any]]) -> str:
  scores = [r["top1"] for r in records if r["kind"] == "evaluation" and "top1" in r]
  return f"{scores[-1]:.2%}" if scores else "not on record"


def demo(workdir: pathlib.Path) -> None:
  """Runs all parts and prints a table of their held-out accuracies.

  Args:
    workdir: folder for all results.

  Raises:
    InUseError: another process runs the demo there.
  """
  with lease_on(workdir):
    _demo(workdir)


def _demo(workdir: pathlib.Path) -> None:
  started_seconds = time.monotonic()
  # Fine-tuning and training from scratch are the same program, so the second finds it compiled.
  jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))

  pretrained = workdir / "pretrained"
  pretraining = load_experiment(str(_CONFIGS / "demo_pretrain.py"))
  pretraining_records = train(pretraining, str(pretrained))

  digits = workdir / "digits"
  # A demo that was killed may have left a part of them.
  if not (digits / MANIFEST_NAME).exists():
    make_digits.make(digits)
  on_digits = [f"--config.data.path={digits}"]
  config = str(_CONFIGS / "demo_finetune.py")
  finetuning = load_experiment(config, [*on_digits, f"--config.initial_weights={pretrained}"])
  finetuning_records = train(
    finetuning, str(workdir / "finetuned"), initial=lambda: with_new_classifier(finetuning)
  )
  from_scratch = load_experiment(config, [*on_digits, "--config.name=demo: digits from scratch"])
  from_scratch_records = train(from_scratch, str(workdir / "from_scratch"))

  rows = [
    ("Fashion-MNIST, pre-trained", _held_out_top1(pretraining_records)),
    ("digits, fine-tuned", _held_out_top1(finetuning_records)),
    ("digits, the same steps from scratch", _held_out_top1(from_scratch_records)),
  ]
  print(format_table(rows, ("network", "held-out top-1")))
  seconds = time.monotonic() - started_seconds
  print(f"took {format_duration(seconds)}; checkpoints, metrics and plots are in {workdir}")


def _define_flags() -> None:
  """Defines the one flag."""
  define_path("workdir", "workdirs/demo", "Folder for all results.", use="write folder")


def main(unused_arguments: list[str]) -> None:
  """Runs the demo in the folder that the flag names."""
  demo(pathlib.Path(flags.FLAGS.workdir))


if __name__ == "__main__":
  _define_flags()
  run_main(main, prints_result=False)
