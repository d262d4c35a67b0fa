"""The table that a run prints at its end."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from train.report.table import format_table


def summary(records: Sequence[Mapping[str, Any]], further: Mapping[str, str]) -> str:
  """Returns the table of steps, speed, losses and accuracies of a run.

  Args:
    records: records of the whole run, as `train.run.records.metrics.read_metrics` returns them.
    further: rows to show first, such as the name and the number of parameters.
  """
  rows = list(further.items())
  if train := [record for record in records if record["kind"] == "train"]:
    speeds = sorted(record.get("images_per_second", math.nan) for record in train)
    waits = [record.get("data_wait_share", math.nan) for record in train]
    rows += [
      ("steps", str(train[-1]["step"])),
      ("last training loss", f"{train[-1].get('loss', math.nan):.4f}"),
      ("median images/s", f"{speeds[len(speeds) // 2]:.0f}"),
      ("mean share of time waiting for data", f"{100 * sum(waits) / len(waits):.1f} %"),
    ]
    if deaths := train[-1].get("worker_deaths"):
      rows.append(("data workers killed and replaced", f"{deaths:.0f}"))
  for ema, network in ((False, "parameters"), (True, "moving average")):
    evaluations = [
      record
      for record in records
      if record["kind"] == "evaluation" and bool(record.get("ema")) == ema
    ]
    if evaluations:
      last = evaluations[-1]
      rows.append((f"held-out loss, {network}", f"{last.get('loss', math.nan):.4f}"))
      if "top1" in last:
        best = max(evaluations, key=_rank)
        rows.append(
          (
            f"held-out top-1, {network}",
            f"{100 * last['top1']:.2f} % (best {100 * best['top1']:.2f} % at step {best['step']})",
          )
        )
      if "top5" in last:
        rows.append((f"held-out top-5, {network}", f"{100 * last['top5']:.2f} %"))
  return format_table(rows)


def _rank(evaluation: Mapping[str, Any]) -> float:
  top1 = evaluation.get("top1", math.nan)
  return -1.0 if math.isnan(top1) else top1
