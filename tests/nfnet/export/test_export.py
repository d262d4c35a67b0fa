"""Tests the command `nfnet.export`, and what it writes in a process without this project."""

import errno
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from nfnet.export.description import describe
from nfnet.export.folder import new_folder
from nfnet.export.program import make_program
from nfnet.export.readme import readme
from nfnet.images.normalization import normalize
from nfnet.images.preprocessing import preprocess
from nfnet.inference import load_classifier
from nfnet.weights.timm import save_timm
from tests import commands
from tests.file_modes import group_umask, modes_beside_group_umask

pytestmark = pytest.mark.usefixtures("small_networks")

SERVER = """
import sys
# None of them can be imported, wherever they are installed.
sys.modules.update(dict.fromkeys(("nfnet", "kernels", "train", "profiling", "flax")))
exec(open("program.py").read())
results = {}
for name, images in np.load("given.npz").items():
  results.update({f"{name} {key}": value for key, value in program(weights, images).items()})
np.savez("results.npz", **results)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, classifier):
  folder = tmp_path_factory.mktemp("export")
  save_timm(str(folder / "weights.safetensors"), classifier.parameters, "tiny")
  (folder / "names.txt").write_text("\n".join(f"class {letter}" for letter in "abcde"))
  return folder


def export(folder, out, *flags, weights="weights.safetensors"):
  return commands.run(
    "tests.train.small_network",
    "nfnet.export",
    f"--weights={folder / weights}",
    f"--out={out}",
    "--numerics=timm",
    "--pixels=16",
    *flags,
  )


def without_the_project(program, folder):
  """Runs Python in a folder, in a process that cannot import this project."""
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def program_of(folder):
  (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
  return program


def program_in(folder):
  return jax.export.deserialize(bytearray((folder / "program.jax").read_bytes()))


@pytest.mark.parametrize(
  ("input_dtype", "compute_dtype"),
  [
    ("uint8", "float32"),
    ("float32", "bfloat16"),
    pytest.param("uint8", "bfloat16", marks=pytest.mark.slow),
    pytest.param("float32", "float32", marks=pytest.mark.slow),
  ],
)
def test_the_folder_is_served_without_this_project(folder, input_dtype, compute_dtype):
  pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers")
  out = folder / f"{input_dtype} {compute_dtype}" / "served"
  flags = [f"--class_names_file={folder / 'names.txt'}"]
  if input_dtype != "uint8":
    flags.append(f"--input={input_dtype}")
  if compute_dtype != "float32":
    flags.append(f"--compute_dtype={compute_dtype}")
  with group_umask():
    result = export(folder, out, *flags)
  assert result.returncode == 0, result.stderr
  assert sorted(path.name for path in out.parent.iterdir()) == ["served"]
  names = ["README.md", "network.json", "program.jax", "weights.safetensors"]
  assert sorted(path.name for path in out.iterdir()) == names
  assert modes_beside_group_umask(out.parent) == {}
  description = json.loads((out / "network.json").read_text())
  assert description["class_names"] == [f"class {letter}" for letter in "abcde"]
  assert description["input"]["shape"] == [None, 16, 16, 3]
  assert description["input"]["dtype"] == input_dtype
  program = program_in(out)
  assert program.platforms == ("cpu", "cuda", "rocm", "tpu")
  assert program.in_avals[-1].dtype == input_dtype
  kinds = {str(value.dtype) for value in load_file(out / "weights.safetensors").values()}
  assert kinds == ({"float32", "uint16"} if compute_dtype == "bfloat16" else {"float32"})

  rng = np.random.default_rng(2)
  for name, size in (("a.png", (40, 50)), ("b.png", (30, 90))):
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(out / name)
  batches = {str(n): rng.integers(0, 256, (n, 16, 16, 3), np.uint8) for n in (1, 3, 8)}
  normalized = {name: normalize(images) for name, images in batches.items()}
  np.savez(out / "given.npz", **(batches if input_dtype == "uint8" else normalized))
  (out / "program.py").write_text(program_of(out))
  printed = without_the_project(SERVER, out)
  classifier = load_classifier(
    folder / "weights.safetensors", variant="tiny", numerics="timm", pixels=16
  )
  pictures = classifier.preprocess([out / "a.png", out / "b.png"])
  # At once, since each number of images is compiled.
  logits = classifier.logits(np.concatenate([pictures, *normalized.values()]))
  probabilities = classifier.probabilities(logits)
  tolerance = 1e-5 if compute_dtype == "float32" else 0.02
  with np.load(out / "results.npz") as results:
    for key, expected in (("logits", logits), ("probabilities", probabilities)):
      found = np.concatenate([results[f"{name} {key}"] for name in batches])
      atol = tolerance * np.abs(expected).max()
      np.testing.assert_allclose(found, expected[2:], rtol=0, atol=atol)
  best = [(f"class {'abcde'[row.argmax()]}", row.max()) for row in probabilities[:2]]
  if compute_dtype == "float32":
    assert printed.splitlines() == [f"{name} {probability:.2%}" for name, probability in best]
    return
  for line, (name, probability) in zip(printed.splitlines(), best, strict=True):
    found_name, percent = line.removesuffix("%").rsplit(" ", 1)
    assert found_name == name
    assert float(percent) == pytest.approx(100 * probability, abs=100 * tolerance)


@pytest.mark.parametrize("resize", ["squash", "shorter_side"])
@pytest.mark.parametrize("input_dtype", ["uint8", "float32"])
@pytest.mark.parametrize("kind", ["jax", "saved_model", "onnx"])
def test_the_readme_prepares_images_as_the_network_was_evaluated(
  classifier, tmp_path, monkeypatch, resize, input_dtype, kind
):
  program = make_program(classifier, input_dtype=input_dtype, compute_dtype="float32")
  description = describe(
    classifier,
    program,
    weights="weights",
    format_name=kind,
    compute_dtype="float32",
    packages=(),
  )
  description["preprocessing"]["resize"] = resize
  (tmp_path / "README.md").write_text(readme(description))
  # What loads and calls a program is not run here.
  parts = program_of(tmp_path).partition("def read_rgb(")
  prepare = "".join(parts[1:]).partition("\noutputs =" if kind != "onnx" else "\n(prob")[0]
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(3)
  colored, other = (rng.integers(0, 256, (*size, 3), np.uint8) for size in ((41, 50), (30, 91)))
  for kinds in (("RGB", "RGB"), ("I;16", "P"), ("LA", "RGBA")):
    for name, pixels, mode in zip(("a.png", "b.png"), (colored, other), kinds, strict=True):
      image = Image.fromarray(pixels)
      wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 128)
      (wide if mode == "I;16" else image.convert(mode)).save(name)
    found = {"np": np, "Image": Image}
    exec(prepare, found)
    images = found["images"]
    assert images.dtype == input_dtype
    expected = preprocess(["a.png", "b.png"], 16, resize=resize, resize_margin=3)
    if input_dtype == "uint8":
      images = normalize(images)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-6)


def test_a_folder_with_content_is_left_alone(folder, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  result = export(folder, tmp_path)
  assert result.returncode == 2
  assert result.stderr == (
    f"error: {tmp_path} holds other files, such as notes.txt: choose another --out\n"
  )
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def names_in(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_appears_when_it_is_complete(is_there, tmp_path):
  out = tmp_path / "out"
  if is_there:
    out.mkdir()

  def write_half():
    with new_folder(str(out), last="last") as unfinished:
      (unfinished / "weights").write_text("half")
      assert [path.name for path in out.iterdir()] == [".unfinished"]
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write_half()
  assert names_in(tmp_path) == ["out"] * is_there
  # As a process that is killed leaves it.
  (out / ".unfinished").mkdir(parents=True)
  (out / ".unfinished" / "weights").write_text("half")
  with new_folder(str(out), last="last") as unfinished:
    (unfinished / "inner").mkdir()
    for name in ("last", "weights", "inner/more"):
      (unfinished / name).write_text("whole")
  assert names_in(tmp_path) == ["out", "out/inner", "out/inner/more", "out/last", "out/weights"]
  assert (out / "weights").read_text() == "whole"


def test_a_folder_may_be_a_link_or_a_volume_in_which_no_folder_can_be_renamed(
  tmp_path, monkeypatch
):
  (tmp_path / "volume").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "volume")
  moved = []

  def rename(source, target):
    """Renames files only, as gcsfuse does in a mounted bucket; no mount point can be replaced."""
    if source.is_dir():
      raise OSError(errno.EBUSY, "Device or resource busy")
    moved.append(target.name)
    os.rename(source, target)

  monkeypatch.setattr(pathlib.Path, "rename", rename)
  with new_folder(str(tmp_path / "link"), last="a") as unfinished:
    for name in ("a", "b", "c"):
      (unfinished / name).write_text(name)
  assert names_in(tmp_path / "volume") == ["a", "b", "c"]
  assert moved[-1] == "a"


def test_mistakes_end_in_one_line(folder, tmp_path):
  for flags, message in (
    (["--format=onnx", "--compute_dtype=bfloat16"], "--format=onnx computes in float32, not "),
    (["--variant=F9"], "--variant: unknown variant 'F9'"),
  ):
    result = export(folder, tmp_path / "out", *flags)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
  importlib.util.find_spec("jax2onnx") is not None, reason="jax2onnx is installed"
)
def test_a_missing_package_is_noticed_before_anything_is_read(folder, tmp_path):
  result = export(folder, tmp_path / "out", "--format=onnx")
  assert result.returncode == 2
  assert re.fullmatch(
    r"error: --format=onnx needs jax2onnx .*: pip install 'jax2onnx[^']*'\n", result.stderr
  )
