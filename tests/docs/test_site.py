"""The documentation as a site, with the API reference that is made from the docstrings."""

import html
import os
import re
import subprocess
import sys

import pytest

from tests.docs.pages import PACKAGES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp("site")
  result = subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
    cwd=ROOT,
    env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return folder


def entry(site, name):
  """The text about one object, from its heading to the next."""
  page = (site / "api" / name.partition(".")[0] / "index.html").read_text(encoding="utf-8")
  text = page.partition(f'id="{name}"')[2].partition('class="doc doc-heading"')
  assert text[1], f"{name} is not in the reference"
  plain = html.unescape(re.sub(r"<[^>]+>", " ", text[2].partition('class="doc doc-heading"')[0]))
  return " ".join(plain.split())


@pytest.mark.parametrize(
  ("name", "words"),
  [
    (
      "kernels.sgd_agc.op.sgd_agc_step",
      ["momentum_buffers", "float32, zeros at first", "Raises", "ValueError", "Source code"],
    ),
    ("kernels.dispatch.dispatch", ["implementation", "NotImplementedError", "ValueError"]),
    ("kernels.scaled_ws_conv.reference.scaled_ws_convolution", ["Array", "h w n c", "gain"]),
    ("kernels.tpu.cost_estimate", ["macs", "multiply-adds"]),
    ("nfnet.predict.read_inputs", ["float32 [n, height, width, 3]", "UserError"]),
    ("nfnet.cost.count", ["pixels", "Raises"]),
    (
      "train.config.files.load_experiment",
      ["overrides", "--config.FIELD=VALUE", "UserError"],
    ),
    ("train.config.experiment.Data", ["crop_area_min", "evaluation_resize_margin", "pixels"]),
    ("train.run.loop.train", ["began_seconds", "time.monotonic()", "Terminated"]),
    ("profiling.compile.tile_sweep.sweep", ["images", "of a device", "UserError"]),
    ("profiling.estimate.report.StepReport.mfu", ["model FLOP utilization"]),
  ],
)
def test_docstrings_are_in_the_reference(site, name, words):
  text = entry(site, name)
  for word in words:
    assert word in text, text[:2000]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_in_the_reference(site, package):
  """One that is new appears by itself."""
  page = (site / "api" / package / "index.html").read_text(encoding="utf-8")
  for path in sorted((ROOT / package).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] not in ("__init__", "__main__"):
      assert f'id="{".".join(parts)}"' in page, path


def test_every_page_is_there(site):
  for path in (ROOT / "docs").rglob("*.md"):
    inside = path.relative_to(ROOT / "docs").with_suffix("")
    folder = inside.parent if inside.name == "index" else inside
    assert (site / folder / "index.html").is_file()


def test_what_stands_beside_a_language_is_a_title(site):
  page = (site / "jft_pretraining" / "index.html").read_text(encoding="utf-8")
  assert "on a TPU slice or a cluster" in page
  assert "```" not in page
