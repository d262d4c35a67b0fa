r"""Measures on a real TPU v4 what this project has only estimated, beside the estimates.

    python -m profiling.first_hour --json=OUT [--parts=numerics,kernels,step,collectives] \
        [--variant=F0] [--folder=first_hour]

Runs on the devices that are present. After what they are, it prints four parts, each as soon as it
is measured: whether the kernels compute what their references do; the time of each op of the
network, beside the cycles of `profiling.kernels`; the time of a training step on all devices,
beside `profiling.step`; and collectives beside the links' bandwidth. The last lines give measured
over estimated times for each part: a new error bar. Estimates come from profiling/results, and
nothing is estimated anew. A part that fails, or an op that does not compile, is recorded as failed
and the rest goes on. On anything but a TPU v4 everything is measured, and no ratios are made.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from nfnet.system.paths import define_path
from nfnet.variants import get_variant
from profiling.compile import command_flags
from profiling.compile.op_shapes import PIXELS
from profiling.estimate.error_bar import Spread, error_bar_text
from profiling.estimate.expected import COLLECTIVE_MEBIBYTES, expected_step
from profiling.measure.first_hour import (
  PARTS,
  Devices,
  Figures,
  Plan,
  present_devices,
  run_part,
  summary,
)
from train.report.output import print_and_write, write_json
from train.report.table import format_table


def as_json(
  devices: Devices, plan: Plan, parts: dict[str, Figures], spreads: dict[str, Spread]
) -> dict[str, Any]:
  """Returns everything that is printed, in base units."""
  return {
    "what": "measured, beside estimates from the compiler's schedules",
    "devices": {**dataclasses.asdict(devices), "chips": devices.chips},
    "plan": {**dataclasses.asdict(plan), "folder": str(plan.folder)},
    "parts": parts,
    "measured_over_estimated": {name: dataclasses.asdict(one) for name, one in spreads.items()},
  }


def devices_text(devices: Devices) -> str:
  """Formats what is there, and whether the estimates are for it."""
  shape = f", {'x'.join(map(str, devices.sides))} chips" if devices.sides else ""
  versions = ", ".join(f"{name} {version}" for name, version in devices.versions.items())
  lines = [
    f"{devices.devices} x {devices.device_kind} ({devices.platform}), "
    f"{devices.cores_per_device} core(s) a device{shape}; {versions}"
  ]
  incomparable = devices.incomparable(expected_step().topology)
  if incomparable:
    lines.append(
      f"These devices are {incomparable}: estimates beside their times mean nothing, and there are "
      "no ratios."
    )
  if devices.platform != "tpu":
    lines.append("Off a TPU, ops run plain JAX in place of kernels, unless these are interpreted.")
  return "\n".join(lines)


def part_text(part: str, figures: Figures) -> str:
  """Formats one part for a terminal."""
  if "failed" in figures:
    return f"{part}: FAILED: {figures['failed']}"
  match part:
    case "numerics":
      return _numerics_text(figures)
    case "kernels":
      return _kernels_text(figures)
    case "step":
      return _step_text(figures)
    case _:
      return _collectives_text(figures)


def _numerics_text(figures: Figures) -> str:
  rows = figures["rows"]
  table = [
    (
      row["label"],
      row["direction"],
      _number(row["kernel_error"], 1, ".1e"),
      _number(row["reference_error"], 1, ".1e"),
      _number(row["error_max"], 1, ".1e"),
      row["failure"] or ("yes" if row["agrees"] else "NO"),
    )
    for row in rows
  ]
  return "\n".join(
    [
      "numerics: relative errors against the reference in float32",
      format_table(table, ("op", "pass", "kernel", "reference", "at most", "agrees")),
      f"{sum(row['agrees'] for row in rows)} of {len(rows)} agree",
    ]
  )


def _kernels_text(figures: Figures) -> str:
  rows = figures["rows"]
  table = [
    (
      row["label"],
      row["direction"],
      str(row["calls"]),
      _number(row["seconds"], 1e6),
      _number(row["estimated_seconds"], 1e6),
      row["error"] or _ratio(row, figures),
    )
    for row in rows
  ]
  lines = [
    "kernels: microseconds of one call on one device",
    format_table(table, ("op", "pass", "calls", "measured", "estimated", "ratio")),
  ]
  if any(not row["is_resolved"] and row["error"] is None for row in rows):
    lines.append("host: launching the program takes too large a part of the time, so no ratio")
  if figures["compared_seconds"]:
    measured, estimated = figures["compared_seconds"], figures["compared_estimated_seconds"]
    lines.append(
      f"All calls of a step that have a ratio: {measured * 1e3:.2f} ms measured, "
      f"{estimated * 1e3:.2f} ms estimated; ratio {measured / estimated:.2f}"
    )
  for one in figures["fallbacks"]:
    lines.append(f"{one['op']} ran its reference: {one['reason']}")
  return "\n".join(lines)


def _step_text(figures: Figures) -> str:
  table = [
    (
      row["part"],
      row["direction"],
      _number(row["seconds"], 1e3, ".2f"),
      _number(row["estimated_seconds"], 1e3, ".2f"),
      _ratio(row, figures),
    )
    for row in figures["rows"]
  ]
  milliseconds = _number(figures["estimated_seconds"], 1e3, ".2f")
  estimate = f"estimated {milliseconds} ms" if milliseconds else "no estimate"
  return "\n".join(
    [
      f"step: measured {figures['seconds'] * 1e3:.2f} ms, {figures['images_per_second']:.1f} "
      f"images/s; {estimate}; ratio: {_ratio(figures, figures)}",
      "Milliseconds of a step's operations by part, from the profile:",
      format_table(table, ("part", "direction", "measured", "estimated", "ratio")),
      f"The devices were idle for {1 - figures['busy_share']:.1%} of the traced time.",
    ]
  )


def _collectives_text(figures: Figures) -> str:
  table = [
    (
      row["name"],
      f"{row['whole_bytes'] / 2**20:.1f}",
      _number(row["seconds"], 1e6),
      _number(row["estimated_seconds"], 1e6),
      _ratio(row, figures),
    )
    for row in figures["rows"]
  ]
  return "\n".join(
    [
      "collectives: microseconds of one call on all devices",
      format_table(table, ("collective", "MiB", "measured", "estimated", "ratio")),
    ]
  )


def summary_text(spreads: dict[str, Spread]) -> str:
  """Formats the new error bar beside the one that it replaces."""
  if not spreads:
    return "No ratio of measured to estimated times, so no new error bar."
  table = [
    (name, f"{one.mean:.2f}", f"{one.lowest:.2f}", f"{one.highest:.2f}")
    for name, one in spreads.items()
  ]
  return "\n".join(
    [
      "Measured over estimated time, the new error bar:",
      format_table(table, ("part", "geometric mean", "lowest", "highest")),
      f"{error_bar_text()}.",
    ]
  )


def _number(value: float | None, factor: float, form: str = ".1f") -> str:
  """Formats a figure in some unit as a cell; "" where there is none."""
  return "" if value is None else format(value * factor, form)


def _ratio(row: Figures, figures: Figures) -> str:
  """Formats a ratio, or says why there is none."""
  if figures["incomparable"]:
    return figures["incomparable"]
  if row["ratio"] is not None:
    return f"{row['ratio']:.2f}"
  if row["estimated_seconds"] is None:
    return "no estimate"
  return "host" if "is_resolved" in row else ""


def _define_flags() -> None:
  """Defines all flags."""
  flags.DEFINE_list("parts", list(PARTS), f"Parts to measure, of {', '.join(PARTS)}.")
  flags.DEFINE_string("variant", "F0", "Network whose ops and step are measured.")
  flags.DEFINE_integer("images", 32, "Images of a chip.", lower_bound=1)
  flags.DEFINE_integer("pixels", PIXELS, "Side of an image, a multiple of 32.", lower_bound=32)
  flags.DEFINE_integer("calls", 20, "Calls that a measurement averages over.", lower_bound=1)
  flags.DEFINE_integer("steps", 20, "Steps to time; as many again are traced.", lower_bound=1)
  flags.DEFINE_multi_integer(
    "mebibytes", list(COLLECTIVE_MEBIBYTES), "Size of a collective's array.", lower_bound=1
  )
  define_path("folder", "first_hour", "Folder for the step's profile.", use="write folder")
  command_flags.define_json()


def plan_of_flags() -> Plan:
  """Returns what the flags ask for.

  Raises:
    UserError: a flag has an invalid value.
  """
  values = flags.FLAGS
  command_flags.check_variant(values.variant)
  if values.pixels % 32:
    raise UserError(f"--pixels={values.pixels}: not a multiple of 32")
  _check_parts(values.parts)
  return Plan(
    variant=get_variant(values.variant).name,
    images=values.images,
    pixels=values.pixels,
    calls=values.calls,
    steps=values.steps,
    mebibytes=tuple(values.mebibytes),
    folder=pathlib.Path(values.folder),
  )


def _check_parts(parts: Sequence[str]) -> None:
  command_flags.check_some("parts", parts)
  unknown = [part for part in parts if part not in PARTS]
  if unknown:
    raise UserError(f"--parts: there is no part {unknown[0]!r}; take some of {', '.join(PARTS)}")


def main(arguments: list[str]) -> None:
  """Measures part by part, and prints each as soon as it is there."""
  refuse_arguments(arguments)
  plan = plan_of_flags()
  devices = present_devices()
  print(devices_text(devices), flush=True)
  parts: dict[str, Figures] = {}
  for part in PARTS:
    if part in flags.FLAGS.parts:
      parts[part] = run_part(part, plan, devices)
      print(f"\n{part_text(part, parts[part])}", flush=True)
  spreads = summary(parts)
  print_and_write(
    f"\n{summary_text(spreads)}",
    lambda: write_json("json", flags.FLAGS.json, as_json(devices, plan, parts, spreads)),
  )


if __name__ == "__main__":
  _define_flags()
  run_main(main)
