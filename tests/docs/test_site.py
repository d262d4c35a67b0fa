"""The documentation builds as a site, with the API reference that is made from the docstrings."""

import html
import os
import re
import subprocess
import sys

import pytest

from tests.docs.pages import PACKAGES, ROOT, read_page


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


def reference_page(site, name):
  """Returns the HTML of the page that a module or an object of it is on."""
  parts = name.split(".")
  inner = site / "api" / ".".join(parts[:2])
  folder = inner if inner.is_dir() else site / "api" / parts[0]
  return (folder / "index.html").read_text(encoding="utf-8")


def entry(site, name):
  """Returns the text about one object, from its heading to the next."""
  page = reference_page(site, name)
  text = page.partition(f'id="{name}"')[2].partition('class="doc doc-heading"')
  assert text[1], f"{name} is not in the reference"
  plain = html.unescape(re.sub(r"<[^>]+>", " ", text[2].partition('class="doc doc-heading"')[0]))
  return " ".join(plain.split())


@pytest.mark.parametrize(
  ("name", "words"),
  [
    (
      "kernels.sgd_agc.op.sgd_agc_step",
      [
        "momentum_buffers",
        "momentum buffers, float32, initially zero",
        "Raises",
        "ValueError",
        "Source code",
      ],
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
    ("profiling.compile.tile_sweep.sweep", ["images", "number of images per device", "UserError"]),
    ("profiling.estimate.report.StepReport.mfu", ["model FLOP utilization"]),
  ],
)
def test_docstrings_are_in_the_reference(site, name, words):
  text = entry(site, name)
  for word in words:
    assert word in text, text[:2000]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_in_the_reference(site, package):
  """A new module appears by itself."""
  for path in sorted((ROOT / package).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] not in ("__init__", "__main__"):
      name = ".".join(parts)
      assert f'id="{name}"' in reference_page(site, name), path


def test_every_page_is_there(site):
  for path in (ROOT / "docs").rglob("*.md"):
    inside = path.relative_to(ROOT / "docs").with_suffix("")
    folder = inside.parent if inside.name == "index" else inside
    assert (site / folder / "index.html").is_file()


def test_what_stands_beside_a_language_is_a_title(site):
  page = (site / "jft_pretraining" / "index.html").read_text(encoding="utf-8")
  assert "on a TPU slice or a cluster" in page
  assert "```" not in page


def test_only_what_is_to_be_typed_can_be_copied(site):
  """Material for MkDocs puts no copy button on blocks of the class no-copy."""
  page = (site / "quick_start" / "index.html").read_text(encoding="utf-8")
  shown = [block.kind.startswith("text") for block in read_page(ROOT / "docs" / "quick_start.md")]
  found = re.findall(r'<div class="([^"]*)highlight">', page)
  assert ["no-copy" in classes for classes in found] == shown
  assert 0 < sum(shown) < len(shown)


def test_pictures_of_results_are_in_the_site(site):
  page = (site / "results" / "index.html").read_text(encoding="utf-8")
  pictures = re.findall(r'src="([^"]*[.]png)"', page)
  assert len(pictures) == 3
  for picture in pictures:
    assert (site / "results" / picture).resolve().is_file(), picture
