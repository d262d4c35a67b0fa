"""The project as a package: what its wheel holds, what that needs, and that it runs elsewhere."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest
from PIL import Image

from nfnet.command_line import is_installed
from tests.quick_compilation import XLA_FLAGS
from tests.repository import ROOT
from tests.test_structure import MODULES, TOPS

DISTRIBUTION = "nfnets-at-scale"
NOT_DEPENDENCIES = {"tensorflow", "torch", "timm", "pyarrow"}
"""What `profiling` measures other projects with, where the user has installed them, and extras."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Builds the wheel from a copy of the tracked files, as pip does, but without a network."""
  pytest.importorskip("setuptools", reason="the test extra is not installed")
  source = tmp_path_factory.mktemp("source")
  for name in (*TOPS, "README.md", "LICENSE", "pyproject.toml"):
    for path in tracked(name):
      (source / path).parent.mkdir(parents=True, exist_ok=True)
      (source / path).write_bytes((ROOT / path).read_bytes())
  out = tmp_path_factory.mktemp("wheel")
  build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
  subprocess.run(
    [sys.executable, "-c", build, out], cwd=source, check=True, capture_output=True, text=True
  )
  (built,) = out.iterdir()
  return built


def tracked(name):
  """Returns the files of a folder, or a file, that Git knows; paths relative to the repository."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--", name], cwd=ROOT, check=True, capture_output=True, text=True
  )
  return listed.stdout.rstrip("\0").split("\0")


def test_the_wheel_holds_every_tracked_file_of_the_packages_and_no_other(wheel):
  with zipfile.ZipFile(wheel) as opened:
    held = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert held == {path for top in TOPS for path in tracked(top)}
    for path in held:
      assert opened.read(path) == (ROOT / path).read_bytes(), path


def test_everything_that_is_imported_is_declared():
  """Whatever else happens to be installed, the packages import nothing of it."""
  declared = {
    re.match(r"[\w-]+", requirement)[0]
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
      "dependencies"
    ]
  }
  distributions = importlib.metadata.packages_distributions()
  imported = {}
  for module, path in MODULES.items():
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module]
      for top in {name.partition(".")[0] for name in names}:
        if top not in sys.stdlib_module_names and top not in (*TOPS, *NOT_DEPENDENCIES):
          names = distributions.get(top, [top])
          imported.setdefault(canonical(min(names, key=len)), module)
  assert imported.keys() == set(map(canonical, declared)), imported


def canonical(distribution):
  return distribution.lower().replace("_", "-")


class Installation:
  """The wheel in an environment of its own, beside the packages that these tests run with.

  Attributes:
    packages: where the packages lie.
    folder: current folder of the commands; it has modules that are called as the project's are.
  """

  def __init__(self, wheel, folder):
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    (self.packages,) = environment.glob("lib/python*/site-packages")
    # What this folder has in .pth files, such as an editable installation, is not in effect.
    (self.packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    with zipfile.ZipFile(wheel) as opened:
      opened.extractall(self.packages)
    (metadata,) = self.packages.glob("*.dist-info")
    (script,) = importlib.metadata.Distribution.at(metadata).entry_points.select(
      group="console_scripts"
    )
    module, _, function = script.value.partition(":")
    self._program = environment / "bin" / script.name
    self._program.write_text(
      f"#!{environment / 'bin' / 'python'}\n"
      f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n"
    )
    self._program.chmod(0o755)
    self.folder = folder / "elsewhere"
    self.folder.mkdir()
    for name in (*TOPS, "numpy", "queue"):
      (self.folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user')")

  def run(self, *arguments, program=None):
    """Runs `nfnets ARGUMENTS...`, or another program, and returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
      [*(program or [self._program]), *map(str, arguments)],
      cwd=self.folder,
      # One device, as on a laptop; and nothing has been compiled for TPU yet.
      env={**environment, "XLA_FLAGS": XLA_FLAGS, "XDG_CACHE_HOME": str(self.folder)},
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout

  @property
  def python(self):
    return self._program.with_name("python")


@pytest.fixture(scope="module")
def installation(wheel, tmp_path_factory):
  return Installation(wheel, tmp_path_factory.mktemp("installation"))


def test_the_installed_program_runs_in_a_folder_that_has_a_train_py(installation):
  assert "71,489,284" in installation.run("describe", "--variant=F0")
  assert installation.run("--version") == f"{importlib.metadata.version(DISTRIBUTION)}\n"


def test_python_m_takes_what_is_in_the_current_folder(installation):
  """Tests what docs/installation.md says of it, and the option that keeps it from that."""
  with pytest.raises(AssertionError, match=r"train\.py of the user"):
    installation.run("-m", "train.goodput", "--help", program=[installation.python])
  module = "train.data.batch_workers.deaths"
  assert installation.run("-P", "-m", module, program=[installation.python]) == ""


@pytest.mark.slow
def test_an_installation_does_it_all(installation):
  run = installation.run
  for name, steps, warmup in (("demo_pretrain", 3000, 100), ("demo_finetune", 120, 20)):
    config = installation.packages / "train" / "configs" / f"{name}.py"
    text = config.read_text()
    for before, after in ((f"train_steps={steps}", "train_steps=2"), (f"={warmup},", "=1,")):
      assert before in text
      text = text.replace(before, after)
    config.write_text(text)
  assert "digits, fine-tuned" in run("demo", "--workdir=demo")
  Image.new("RGB", (40, 30), "red").save(installation.folder / "a.png")
  assert "a.png" in run("predict", "--weights=demo/finetuned", "a.png")
  source = installation.folder / "PICTURES"
  for name in ("cat", "dog"):
    (source / name).mkdir(parents=True)
    for i in range(20):
      Image.new("RGB", (32, 32), (i, i, i)).save(source / name / f"{i}.png")
  run("prepare_data", "--source=PICTURES", "--out=DATA", "--workers=2")
  run(
    *("pretrain", "--config=demo_pretrain", "--workdir=RUN", "--config.data.path=DATA"),
    *("--config.data.num_classes=2", "--config.data.batch_size=16"),
  )
  assert "top-1" in run("evaluate", "--workdir=RUN")
  script = run(
    *("launch", "--to=queued_resources", "--name=f3", "--topology=v4:4x4x4"),
    *("--image=example.com/nfnets:1", "--shared=gs://bucket", "--workdir=/shared/runs/f3"),
    *("--config=jft_pretrain:variant=F3", "--config.data.path=/shared/jft"),
  )
  assert "--config=train/configs/jft_pretrain.py:variant=F3" in script


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("libtpu"), reason="libtpu is not installed")
def test_an_installation_compiles_kernels(installation):
  printed = installation.run("kernels", "--kernels=pallas", "--only=1x1x256x256")
  assert "sgd_agc 1x1x256x256" in printed


def test_the_page_lists_all_extras():
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
  page = (ROOT / "docs" / "installation.md").read_text()
  rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", page, re.MULTILINE)
  listed = {extra for row in rows for extra in re.findall("[a-z_]+", row)}
  assert listed == settings["project"]["optional-dependencies"].keys()
