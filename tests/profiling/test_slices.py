import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

from nfnet.cost import count
from nfnet.errors import UserError
from profiling.estimate.report import request_as_json
from profiling.estimate.step_time import Row
from profiling.slices import as_json, as_text, draw, efficiencies, efficiency, fastest, requests
from tests import commands
from tests.profiling.reports import collective_row, compute_row, report

SLICES = ("v4:8x8x16", "v4:2x2x1")


def step(request, *, compute, collectives, hbm_bytes=2**30):
  return report(
    request,
    Row(part="stem", direction="forward", kind="convolution", seconds=compute * 0.75),
    Row(part="optimizer", direction="", kind="kernel", seconds=compute * 0.25),
    collective_row(collectives),
    collective_bytes=4 * 10**9,
    lower_seconds=10.0,
    compile_seconds=100.0,
    peak_memory_bytes=9 * 10**9,
    hbm_bytes=hbm_bytes,
  )


@pytest.fixture
def steps():
  """Returns steps of F3: kernels are faster on 4 chips, and the reference on 1024."""
  small_reference, small_pallas, large_reference, large_pallas = requests(
    ["F3"], SLICES, ["reference", "pallas"]
  )
  return [
    step(small_reference, compute=4.0, collectives=0.04),
    step(small_pallas, compute=2.0, collectives=0.048),
    step(large_reference, compute=0.012, collectives=0.004),
    step(large_pallas, compute=0.015, collectives=0.005),
  ]


def test_steps_are_of_one_batch_from_the_smallest_slice_on():
  found = requests(["F3", "F7+"], SLICES, ["reference", "pallas"])
  assert [
    (
      request.experiment.model.variant,
      request.topology,
      request.experiment.model.kernels,
      request.experiment.model.block_execution,
      request.batch_per_chip,
      request.experiment.optimizer.gradient_accumulation,
      request.experiment.model.rematerialize,
    )
    for request in found
  ] == [
    ("F3", "v4:2x2x1", "reference", "scan", 1024, 32, False),
    ("F3", "v4:2x2x1", "pallas", "unrolled", 1024, 32, False),
    ("F3", "v4:8x8x16", "reference", "scan", 4, 1, False),
    ("F3", "v4:8x8x16", "pallas", "unrolled", 4, 1, False),
    ("F7+", "v4:2x2x1", "reference", "scan", 1024, 32, True),
    ("F7+", "v4:2x2x1", "pallas", "unrolled", 1024, 32, False),
    ("F7+", "v4:8x8x16", "reference", "scan", 4, 1, False),
    ("F7+", "v4:8x8x16", "pallas", "unrolled", 4, 1, False),
  ]
  assert {request.experiment.data.batch_size for request in found} == {4096}


@pytest.mark.parametrize(
  ("name", "message"),
  [("v4:4x4x3", "chips=48: must divide the batch of 4096"), ("v4:4x4", "has 3 sides")],
)
def test_a_slice_that_cannot_be_is_an_error(name, message):
  with pytest.raises(UserError, match=message):
    requests(["F3"], [name], ["reference"])


def test_efficiency_by_hand(steps):
  # 1024 images in 2.048 s are 500 a second, 4 in 16 ms 250; beside collectives 512 and 333.3.
  found = efficiency(steps[2], steps[1])
  assert found.collectives_after == pytest.approx(250 / 500)
  assert found.collectives_beside == pytest.approx(4 / 0.012 / 512)
  # Collectives that take longer than all else are what a step takes.
  slow = efficiency(step(steps[2].request, compute=0.012, collectives=0.02), steps[1])
  assert slow.collectives_beside == pytest.approx(4 / 0.02 / 512)


def test_efficiency_is_between_no_overlap_and_all_of_it(steps):
  """What overlaps in the compiled schedule is in neither bound."""
  request = steps[2].request
  rows = [compute_row(0.012), collective_row(0.001)]
  overlapping = report(request, *rows, collective_seconds=0.004)
  assert efficiency(overlapping, steps[1]) == efficiency(steps[2], steps[1])


def test_the_base_is_the_fastest_on_the_smallest_slice(steps):
  assert fastest(steps) == {("F3", "v4:2x2x1"): steps[1], ("F3", "v4:8x8x16"): steps[2]}
  found = [one.collectives_after for one in efficiencies(steps)]
  assert found == pytest.approx([2.048 / 4.04, 1, 0.5, 0.4])


def test_what_does_not_fit_is_never_the_fastest(steps):
  steps[1] = dataclasses.replace(
    steps[1], compilation=dataclasses.replace(steps[1].compilation, hbm_bytes=33 * 2**30)
  )
  assert fastest(steps)["F3", "v4:2x2x1"] == steps[0]
  assert efficiencies(steps)[0].collectives_after == 1
  assert "33.0, -1.0" in as_text(steps)
  # Nothing on the smallest slice: there is nothing to compare with.
  assert efficiencies([steps[1], steps[2]]) == [None, None]
  assert as_json([steps[1], steps[2]], "")["steps"][1]["efficiency"] is None


def test_a_row_a_step(steps):
  text = as_text(steps)
  assert text.startswith("Batch 4096, 224 px, 30,000 classes. Step times are estimated, not")
  lines = [" ".join(line.split()) for line in text.splitlines() if line.startswith("F3 ")]
  mfu = 6 * count("F3", num_classes=30_000, pixels=224).macs * 250 / 275e12
  assert lines[2] == (
    "F3 1024 reference * scan 4 / 1 8 1.0, 31.0 110 s, 9.0 GB 12.0 3.0 4.00 GB, 4.0 33.3% "
    f"16.0, 16.0 250.0 {mfu:.1%} 50.0% (65.1%)"
  )
  assert [" * " in line for line in lines] == [False, True, True, False]


def test_the_json_has_the_same_figures_in_base_units(steps):
  fields = json.loads(json.dumps(as_json(steps, "python -m profiling.slices")))
  assert fields["command"] == "python -m profiling.slices"
  assert "estimated from the compiler's schedule, not measured" in fields["what"]
  one = fields["steps"][2]
  assert request_as_json(steps[2].request).items() < one.items()
  assert (one["chips"], one["is_fastest_that_fits"]) == (1024, True)
  assert one["hbm_margin_bytes"] == 31 * 2**30
  assert one["compute_seconds"] == pytest.approx(0.012)
  assert one["optimizer_seconds"] == pytest.approx(0.003)
  assert one["collective_seconds"] == pytest.approx(0.004)
  assert one["exposed_collective_seconds"] == pytest.approx(0.004)
  assert one["step_seconds_without_overlap"] == pytest.approx(0.016)
  assert one["efficiency"] == dataclasses.asdict(efficiency(steps[2], steps[1]))


def test_the_plot_has_the_fastest_of_each_slice_and_a_band(steps, tmp_path):
  (axes,) = (figure := draw(steps)).axes
  after, beside = [line for line in axes.lines if len(line.get_xdata())]
  assert list(after.get_xdata()) == list(beside.get_xdata()) == [4, 1024]
  assert list(after.get_ydata()) == pytest.approx([1, 0.5])
  assert list(beside.get_ydata()) == pytest.approx([1, 4 / 0.012 / 512])
  figure.savefig(tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size > 10_000


def run(*arguments, cache):
  return subprocess.run(
    [sys.executable, "-m", "profiling.slices", *arguments],
    env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_the_command(tmp_path):
  out, plot = tmp_path / "out.json", tmp_path / "plot.png"
  arguments = (
    "--variants=P0", "--slices=v4:8x8x16,v4:2x2x1", "--kernels=reference", f"--json={out}",
    f"--plot={plot}",
  )  # fmt: skip
  result = run(*arguments, cache=tmp_path)
  assert result.returncode == 0, result.stderr
  fields = json.loads(out.read_text())
  assert fields["command"] == f"python -m profiling.slices {' '.join(arguments)}"
  small, large = fields["steps"]
  assert (small["chips"], small["batch_per_chip"], small["gradient_accumulation"]) == (4, 1024, 32)
  assert (large["chips"], large["batch_per_chip"], large["gradient_accumulation"]) == (1024, 4, 1)
  # However many parts there are, gradients are summed once.
  assert small["collective_bytes"] == large["collective_bytes"]
  # 32 parts of 32 images: the loop over parts counts as often as it runs.
  assert small["compute_seconds"] > 32 * large["compute_seconds"]
  assert small["efficiency"] == {"collectives_after": 1, "collectives_beside": 1}
  assert 0 < large["efficiency"]["collectives_after"] < 1
  assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--variants=G0", "--variants: unknown variant 'G0'"),
    ("--variants=", "--variants= names none"),
    ("--slices=", "--slices= names none"),
    ("--slices=v4:2x2x3", "chips=12: must divide the batch of 4096"),
    ("--kernels=fast", "kernels"),
    ("stray", "unexpected argument 'stray'"),
  ],
)
def test_what_a_user_gets_wrong_is_one_line(argument, message, tmp_path):
  result = commands.run("profiling.slices", argument, environment={"XDG_CACHE_HOME": str(tmp_path)})
  assert result.returncode == 2
  assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", result.stderr), result.stderr
