"""Prints the number of parameters and multiply-adds of a network.

python -m nfnet.describe --variant=F7+ --num_classes=30000 --pixels=224 [--json]
"""

import dataclasses
import json
from typing import Any

from absl import flags

from nfnet.command_line import run_main
from nfnet.cost import Cost, count
from nfnet.errors import UserError, format_count
from nfnet.variants import PIXELS_MAX, VARIANTS, get_variant


def as_json(cost: Cost) -> dict[str, Any]:
  """Returns the counts, including totals, as JSON values."""
  return {
    **dataclasses.asdict(cost),
    "parameters": cost.parameters,
    "macs": cost.macs,
    "training_flops": cost.training_flops,
  }


def as_text(cost: Cost) -> str:
  """Formats the counts as a table."""
  lines = [
    f"NFNet-{cost.variant}, {format_count(cost.num_classes, 'class')}, {cost.pixels} px, "
    f"bottleneck as in the {'papers' if cost.bottleneck == 'paper' else 'released code'}",
    f"parameters              {_with_prefix(cost.parameters):>11}   ({cost.parameters:,})",
    f"multiply-adds an image  {_with_prefix(cost.macs):>11}   ({cost.macs:,})",
    f"training FLOP an image  {_with_prefix(cost.training_flops):>11}   (6 x multiply-adds)",
    "",
    f"{'part':<12}{'blocks':>8}{'output px':>11}{'channels':>10}"
    f"{'parameters':>14}{'multiply-adds':>16}{'share':>9}",
  ]
  lines.extend(
    f"{part.name:<12}{part.blocks or '':>8}{part.output_pixels:>11}{part.output_channels:>10}"
    f"{_with_prefix(part.parameters):>14}{_with_prefix(part.macs):>16}"
    f"{part.macs / cost.macs:>9.1%}"
    for part in cost.parts
  )
  return "\n".join(lines)


def _with_prefix(count: int) -> str:
  """Formats a count with two decimals and a metric prefix up to giga, as the papers do."""
  for divisor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if count >= divisor:
      return f"{count / divisor:.2f} {prefix}"
  return f"{count}  "


def _define_flags() -> None:
  flags.DEFINE_string("variant", None, f"One of {', '.join(VARIANTS)}.", required=True)
  flags.DEFINE_integer("num_classes", 1000, "Width of the classifier.", lower_bound=1)
  flags.DEFINE_integer(
    "pixels",
    None,
    "Side of the image; the variant's test resolution if not given.",
    lower_bound=1,
    upper_bound=PIXELS_MAX,
  )
  flags.DEFINE_enum(
    "bottleneck", "paper", ["paper", "released"], "First stage of F+: 192 channels or 128."
  )
  flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def main(_: list[str]) -> None:
  """Prints the cost of the network that the flags name."""
  arguments = flags.FLAGS
  try:
    test_pixels = get_variant(arguments.variant).test_pixels
  except ValueError as error:
    raise UserError(f"--variant: {error}") from error
  cost = count(
    arguments.variant,
    num_classes=arguments.num_classes,
    pixels=arguments.pixels or test_pixels,
    bottleneck=arguments.bottleneck,
  )
  print(json.dumps(as_json(cost), indent=2) if arguments.json else as_text(cost))


if __name__ == "__main__":
  _define_flags()
  run_main(main)
