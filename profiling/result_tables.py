"""Writes the tables of results in README.md and in docs/ from the files in profiling/results.

    python -m profiling.result_tables

Replaces everything between a line `<!-- results: NAME -->` and the next `<!-- end of results -->`
by the text of that name, which a function in `RESULT_TEXTS` returns. Nothing is compiled. A test
compares the pages with what this command would write, so that they cannot differ from the data.
"""

import pathlib
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from profiling.compile.op_shapes import op_shapes
from profiling.estimate.expected import (
  COLLECTIVE_MEBIBYTES,
  OPCODES,
  expected_collective_seconds,
  expected_ops,
  expected_step,
)
from profiling.estimate.step_time import sum_by
from profiling.estimate.stored import read_stored

_ROOT = pathlib.Path(__file__).parents[1]

PAGES = (
  _ROOT / "README.md",
  *(_ROOT / "docs" / f"{name}.md" for name in ("first_hour", "profiling", "results")),
)
"""The pages that have such tables."""

_MARKED = re.compile(r"<!-- results: (\w+) -->\n(.*?)<!-- end of results -->\n", re.DOTALL)
_PAPER_A_VARIANTS = ("F0", "F1", "F3", "F3+", "F7", "F7+")
_GENERATIONS = {"v3": "v3", "v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "tpu7x": "7x"}
_OPS = {
  "conv": "convolutions",
  "stem": "stem",
  "se_residual": "squeeze-excite and residual addition, on top of the convolution before them",
  "fully_connected": "classifier, whose weight gradient has a kernel",
  "sgd_agc": "optimizer",
}
_SUMMARIZED_VARIANTS = ("F0", "F7+")


def fill(text: str, name: str) -> str:
  """Returns a page with its marked places filled from the stored results.

  Args:
    text: content of the page, in Markdown.
    name: file name of the page, for error messages.

  Raises:
    UserError: a marker has an unknown name, or no end.
  """
  opened, marked = text.count("<!-- results:"), len(_MARKED.findall(text))
  if opened != marked or text.count("<!-- end of results -->") != marked:
    raise UserError(
      f"{name}: {marked} of {opened} marked places are complete; write "
      "'<!-- results: NAME -->' and '<!-- end of results -->' on lines of their own"
    )

  def replace(match: re.Match[str]) -> str:
    make = RESULT_TEXTS.get(match[1])
    if make is None:
      raise UserError(
        f"{name}: unknown results {match[1]!r}; take one of {', '.join(RESULT_TEXTS)}"
      )
    return f"<!-- results: {match[1]} -->\n\n{make()}\n\n<!-- end of results -->\n"

  return _MARKED.sub(replace, text)


def core_hours() -> str:
  """Returns paper A's networks: step times, and estimated beside published core-hours."""
  plain, kernels = (_steps(f"core_hours_{name}.json") for name in ("reference", "pallas"))
  rows = []
  for variant, (hours, published) in _epoch_core_hours().items():
    step = kernels[variant]
    rows.append(
      (
        variant,
        f"{plain[variant]['step_seconds'] * 1e3:.1f} ms",
        f"{step['step_seconds'] * 1e3:.1f} ms",
        f"{step['images_per_second_per_chip']:,.0f}",
        f"{hours:,.0f}",
        f"{published:,.0f}",
        f"{hours / published:.2f}",
      )
    )
  header = (
    "network",
    "step, plain JAX",
    "step, Pallas kernels",
    "images/s/chip",
    "core-hours an epoch",
    "in paper A",
    "ratio",
  )
  return _markdown(header, rows)


def core_hours_range() -> str:
  """Returns a sentence that applies the error bar of TPU v3 to the core-hours of `core_hours`."""
  ratios = [hours / published for hours, published in _epoch_core_hours().values()]
  spread = _spread_v3()
  lowest, highest = min(ratios) * spread["lowest"], max(ratios) * spread["highest"]
  return (
    "If real steps took as much longer than their estimates as they did on TPU v3, the networks "
    f"would need {lowest:.2f} to {highest:.2f} times the published core-hours."
  )


def core_hours_steps() -> str:
  """Returns every step that core-hours are computed from: blocks, utilization, memory."""
  rows = []
  for kernels, name in (("plain JAX", "reference"), ("Pallas", "pallas")):
    for variant, step in _steps(f"core_hours_{name}.json").items():
      if variant != "finetuning":
        rows.append((variant, kernels, *_step_columns(step)))
  rows.sort(key=lambda row: _PAPER_A_VARIANTS.index(row[0]))
  header = ("network", "kernels", "blocks", "step", "images/s/chip", "MFU", "HBM a chip")
  return _markdown(header, rows)


def finetuning() -> str:
  """Returns the fine-tuning of F7+ on ImageNet with SAM."""
  stored = read_stored("core_hours_pallas.json")
  step, hours = stored["steps"]["finetuning"], stored["finetuning"]
  row = (
    f"{step['variant']}, {step['pixels']} px, {step['batch_per_chip']} images a chip",
    *_step_columns(step),
    f"{hours['estimated_core_hours']:,.0f}",
    f"{hours['published_core_hours']:,.0f}",
  )
  header = ("fine-tuning, 50 epochs", "blocks", "step", "images/s/chip", "MFU", "HBM a chip")
  return _markdown((*header, "core-hours", "in paper A"), [row])


def vision_transformers() -> str:
  """Returns the vision transformers that paper A compares with."""
  rows = [
    (
      step["model"],
      f"{step['step_seconds'] * 1e3:.0f} ms",
      f"{step['images_per_second_per_chip']:.0f}",
      f"{step['mfu']:.1%}",
      "not known here"
      if step["pretraining_images"] is None
      else f"{step['pretraining_images'] / 1e9:.0f}e9",
      "" if step["estimated_core_hours"] is None else f"{step['estimated_core_hours']:,.0f}",
      f"{step['published_core_hours']:,.0f}",
    )
    for step in read_stored("vit.json")["steps"]
  ]
  header = ("model", "step", "images/s/chip", "MFU", "images seen", "core-hours", "published")
  return _markdown(header, rows)


def ops() -> str:
  """Returns each op's geometric mean of XLA's cycles over the kernel's."""
  rows = []
  for op, words in _OPS.items():
    chosen = [
      row
      for row in read_stored("ops.json")["rows"]
      if row["label"].startswith(op)
      and row["xla_cycles"]
      and row["kernel_cycles"]
      and set(_SUMMARIZED_VARIANTS) & set(row["calls"])
    ]
    ratios = {
      direction: [
        row["xla_cycles"] / row["kernel_cycles"] for row in chosen if row["direction"] == direction
      ]
      for direction in ("forward", "backward", "update")
    }
    first, second = ratios["forward"] or ratios["update"], ratios["backward"]
    means = (f"{statistics.geometric_mean(one):.2f}" if one else "" for one in (first, second))
    rows.append((words, str(len(first or second)), *means))
  return _markdown(("op", "shapes", "forward, or the update", "backward"), rows)


def slices() -> str:
  """Returns a batch of 4096 on slices of 4 to 1024 chips."""
  rows = [
    (
      step["variant"],
      f"{step['chips']}",
      f"{step['batch_per_chip']}",
      f"{step['batch_per_chip'] // step['gradient_accumulation']}",
      f"{_gibibytes(step['hbm_bytes'])}",
      f"{step['step_seconds'] * 1e3:,.1f} ms",
      f"{step['collective_seconds'] / step['step_seconds']:.1%}",
      f"{step['images_per_second_per_chip']:.0f}",
      f"{step['efficiency']['collectives_after']:.0%}",
    )
    for step in read_stored("slices.json")["steps"]
    if step["is_fastest_that_fits"]
  ]
  header = ("network", "chips", "images a chip", "at once", "HBM a chip", "step", "collectives")
  return _markdown((*header, "images/s/chip", "efficiency"), rows)


def memory() -> str:
  """Returns what rematerialization and accumulation do to memory and step time."""
  by_variant: dict[str, list[str]] = {}
  for step in read_stored("memory.json")["steps"]:
    text = f"{_gibibytes(step['hbm_bytes'])}, {step['step_seconds'] * 1e3:.1f} ms"
    by_variant.setdefault(step["variant"], []).append(
      text if step["fits"] else f"{_gibibytes(step['hbm_bytes'])}: does not fit"
    )
  header = ("network", "as it is", "blocks rematerialized", "in two accumulated parts")
  return _markdown(header, [(variant, *cells) for variant, cells in by_variant.items()])


def input_pipeline() -> str:
  """Returns the measured speed of the input pipeline beside others, and what a TPU host needs."""
  stored = read_stored("input_pipeline.json")
  speeds, host = stored["speeds"], stored["host"]
  row = [f"{speed['images_per_cpu_second'][0]:.0f}" for speed in speeds.values()]
  return (
    f"{_markdown(list(speeds), [row])}\n\n"
    f"A TPU v4 host with four chips needs {host['cores']:.0f} such cores to keep F0 with kernels "
    f"supplied; it has {host['vcpus']} vCPUs."
  )


def released_code() -> str:
  """Returns this project's reference beside the code released with paper B."""
  rows = [
    (
      f"{step['variant']}, {step['num_classes']:,} classes",
      f"{step['images_per_second_per_chip']:,.0f}",
      f"{step['released_code']:,.0f}",
      f"{step['with_collectives']:,.0f}",
    )
    for step in read_stored("released_code.json")["steps"]
  ]
  header = ("network", "this project", "released code", "this project with collectives")
  return _markdown(header, rows)


def generations() -> str:
  """Returns F3 on other TPU generations."""
  rows = [
    (
      _GENERATIONS[step["topology"].partition(":")[0]],
      f"{step['step_seconds'] * 1e3:.0f} ms",
      f"{step['images_per_second_per_chip']:.0f}",
      f"{step['mfu']:.1%}",
    )
    for step in read_stored("generations.json")["steps"]
  ]
  return _markdown(("TPU", "step", "images/s/chip", "MFU"), rows)


def gpu() -> str:
  """Returns training on a GPU beside timm."""
  rows = [
    (
      row["variant"],
      f"{row['this_project']['images_per_second']:,.0f}",
      f"{row['timm']['images_per_second']:,.0f}",
      f"{row['this_project']['images_per_second'] / row['timm']['images_per_second']:.2f}",
      row["timm"]["device_kind"],
    )
    for row in read_stored("gpu.json")["rows"]
  ]
  header = ("network", "this project, images/s", "timm, images/s", "ratio", "card")
  return _markdown(header, rows)


def error_bar() -> str:
  """Returns a sentence that says how far published step times are from their estimates."""
  spread = _spread_v3()
  return (
    "Where step times of real TPUs were published (paper B, F0 to F5 on TPU v3), they are "
    f"{spread['lowest']:.2f} to {spread['highest']:.2f} times this project's estimates."
  )


def calibration() -> str:
  """Returns estimates of steps on TPU v3 beside the times that paper B published."""
  rows = [
    (
      f"{row['variant']}, {row['pixels']} px",
      f"{row['estimated'] * 1e3:,.1f} ms",
      f"{row['published'] * 1e3:,.1f} ms",
      f"{row['ratio']:.2f}",
    )
    for row in read_stored("calibration.json")["tables"]["v3"]["rows"]
  ]
  return _markdown(("TPU v3, 32 images a core", "estimated", "published", "ratio"), rows)


def first_hour_kernels() -> str:
  """Returns what `profiling.first_hour` should measure of each op of F0."""
  expected = expected_ops()
  variant = expected_step().request["variant"]
  rows = []
  for shape, calls in op_shapes(variant).items():
    cells = [
      f"{expected.seconds[shape.label, direction] * 1e6:.1f}"
      if (shape.label, direction) in expected.seconds
      else ""
      for direction in ("forward", "backward", "update")
    ]
    rows.append((shape.label, f"{calls}", *cells))
  return _markdown(("op, microseconds a call", "calls", "forward", "backward", "update"), rows)


def first_hour_step() -> str:
  """Returns what `profiling.first_hour` should measure of a step of F0, whole and by part."""
  expected = expected_step()
  by_part = sum_by(expected.rows, "part", "direction")
  rows = [("whole step", "", f"{expected.seconds * 1e3:.2f}")]
  rows += [
    (part, direction, f"{seconds * 1e3:.2f}") for (part, direction), seconds in by_part.items()
  ]
  return _markdown(("part, milliseconds a step", "direction", "estimated"), rows)


def first_hour_collectives() -> str:
  """Returns what `profiling.first_hour` should measure of collectives on four chips."""
  topology = expected_step().topology
  rows = [
    (
      name,
      *(
        f"{expected_collective_seconds(name, size * 2**20, topology) * 1e6:,.1f}"
        for size in COLLECTIVE_MEBIBYTES
      ),
    )
    for name in OPCODES
  ]
  sizes = [f"{size} MiB" for size in COLLECTIVE_MEBIBYTES]
  return _markdown((f"{topology.name}, microseconds a call", *sizes), rows)


RESULT_TEXTS: dict[str, Callable[[], str]] = {
  make.__name__: make
  for make in (
    error_bar,
    core_hours,
    core_hours_range,
    core_hours_steps,
    finetuning,
    vision_transformers,
    ops,
    slices,
    memory,
    input_pipeline,
    released_code,
    generations,
    gpu,
    calibration,
    first_hour_kernels,
    first_hour_step,
    first_hour_collectives,
  )
}
"""The function that returns each text, by the text's name in the pages."""


def _spread_v3() -> dict[str, float]:
  """Returns lowest, mean and highest ratio of published to estimated step times on TPU v3."""
  return read_stored("calibration.json")["tables"]["v3"]["spread"]


def _steps(name: str) -> dict[str, dict[str, Any]]:
  return read_stored(name)["steps"]


def _epoch_core_hours() -> dict[str, tuple[float, float]]:
  """Returns the core-hours of one epoch with kernels by network: estimated, and in paper A."""
  return {
    run["variant"]: (run["estimated_core_hours"], run["published_core_hours"])
    for run in read_stored("core_hours_pallas.json")["pretraining"]
    if run["epochs"] == 1
  }


def _step_columns(step: dict[str, Any]) -> tuple[str, ...]:
  """Returns how blocks run, time of a step, images/s/chip, utilization and memory."""
  blocks = {"scan": "loop", "unrolled": "unrolled"}[step["block_execution"]]
  return (
    f"{blocks}, rematerialized" if step["rematerialize"] else blocks,
    f"{step['step_seconds'] * 1e3:.1f} ms",
    f"{step['images_per_second_per_chip']:,.0f}",
    f"{step['mfu']:.1%}",
    _gibibytes(step["hbm_bytes"]),
  )


def _gibibytes(number_of_bytes: float) -> str:
  return f"{number_of_bytes / 2**30:.1f} GiB"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table in Markdown; all columns but the first are aligned to the right."""
  rule = ["---", *["---:"] * (len(header) - 1)]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def main(arguments: list[str]) -> None:
  """Rewrites the tables in all pages and says which pages changed."""
  refuse_arguments(arguments)
  if missing := [page for page in PAGES if not page.is_file()]:
    raise UserError(
      f"{missing[0]} is not there: the pages are in the repository, not in an installed package; "
      "run `python -m profiling.result_tables` at the top of the repository"
    )
  for page in PAGES:
    text = page.read_text(encoding="utf-8")
    filled = fill(text, page.name)
    page.write_text(filled, encoding="utf-8")
    print(f"{page.relative_to(_ROOT)}: {'unchanged' if filled == text else 'written'}")


if __name__ == "__main__":
  run_main(main)
