"""The project as a package: what its wheel holds, what that needs, and that it runs elsewhere.

pip builds and installs it, without a network.
"""

import ast
import email
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from nfnet.command_line import is_installed
from tests.quick_compilation import XLA_FLAGS
from tests.repository import ROOT, syntax_tree
from tests.test_command_lines import COMMANDS
from tests.test_structure import MODULES, TOPS

DISTRIBUTION = "nfnets-at-scale"
NOT_DEPENDENCIES = {"tensorflow", "torch", "timm", "pyarrow"}
"""What `profiling` measures other projects with, where the user has installed them, and extras."""


def pip(*arguments, folder=None):
  """Runs pip of the Python that the tests' environment was made with, as the Makefile does.

  It has no network, no settings of the machine, and sees no package but those of the environment.
  """
  environment = {
    name: value
    for name, value in os.environ.items()
    if name != "PYTHONPATH" and not name.startswith("PIP_")
  }
  result = subprocess.run(
    [sys._base_executable, "-P", "-m", "pip", *map(str, arguments)],
    cwd=folder,
    env={
      **environment,
      "PIP_CONFIG_FILE": os.devnull,
      "PIP_NO_INDEX": "1",
      "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    },
    capture_output=True,
    text=True,
    check=False,
  )
  if "No module named pip" in result.stderr:
    pytest.skip(f"{sys._base_executable} has no pip, which builds and installs packages")
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Builds the wheel from a copy of the tracked files."""
  pytest.importorskip("setuptools", reason="the test extra is not installed")
  source = tmp_path_factory.mktemp("source")
  for name in (*TOPS, "README.md", "LICENSE", "pyproject.toml"):
    for path in tracked(name):
      (source / path).parent.mkdir(parents=True, exist_ok=True)
      (source / path).write_bytes((ROOT / path).read_bytes())
  out = tmp_path_factory.mktemp("wheel")
  # Isolated, pip would download the setuptools that is installed here.
  pip(
    *("--python", sys.executable, "wheel", "--no-build-isolation", "--no-deps"),
    *("--wheel-dir", out, source),
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
    for node in ast.walk(syntax_tree(path)):
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


def requirements_of(wheel):
  """Returns what a wheel requires, as texts."""
  with zipfile.ZipFile(wheel) as opened:
    (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(opened.read(name)).get_all("Requires-Dist")


def needed(requirements, extras=()):
  """Returns the installed distributions that requirements need here, directly or not, by name.

  Args:
    requirements: texts, as in a wheel's metadata.
    extras: the extras of that wheel that count.
  """
  found, seen = {}, set()
  waiting = [(text, extra) for text in requirements for extra in ("", *extras)]
  while waiting:
    text, extra = waiting.pop()
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
      continue
    name = canonicalize_name(requirement.name)
    for inner in {"", *requirement.extras}:
      if (name, inner) not in seen:
        seen.add((name, inner))
        found[name] = importlib.metadata.distribution(name)
        waiting += [(text, inner) for text in found[name].requires or ()]
  return found


def link(distribution, packages):
  """Makes links to the files of a distribution, without its programs, in a folder for packages."""
  root = pathlib.Path(sysconfig.get_path("purelib"))
  for file in distribution.files:
    if ".." not in file.parts:
      path = packages / file
      path.parent.mkdir(parents=True, exist_ok=True)
      path.symlink_to(root / file)


HELP = """
import os, runpy, sys
# What takes longest to import, once for all commands.
import matplotlib.pyplot, train.run.loop
for module in sys.argv[1:]:
  if not (child := os.fork()):
    sys.argv = ["", "--help"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  print(f"{module} ended with {status}", flush=True)
"""
"""Asks each of the commands for help, in a process of its own."""


class Installation:
  """The wheel in an environment of its own, with what it requires and nothing else.

  Attributes:
    packages: where the packages lie.
    folder: current folder of the commands; it has modules that are called as the project's are.
  """

  def __init__(self, wheel, folder, extras=()):
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    (self.packages,) = environment.glob("lib/python*/site-packages")
    self._program = environment / "bin" / "nfnets"
    for distribution in needed(requirements_of(wheel), extras).values():
      link(distribution, self.packages)
    # It would look for whatever is required and missing, and fail.
    name = f"{wheel}[{','.join(extras)}]" if extras else wheel
    pip("--python", self.python, "install", name)
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


def test_an_environment_without_extras_has_only_what_the_wheel_requires(installation):
  found = {
    canonicalize_name(one.name)
    for one in importlib.metadata.distributions(path=[str(installation.packages)])
  }
  assert {DISTRIBUTION, "jax", "flax", "zipp"} <= found
  assert found.isdisjoint({"libtpu", "pytest", "hypothesis", "beartype", "mkdocs", "ruff"})


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
def test_every_command_shows_its_help_without_extras(installation):
  printed = installation.run("-P", "-c", HELP, *COMMANDS, program=[installation.python])
  assert re.findall(r"^(\S+) ended with (\d+)$", printed, re.MULTILINE) == [
    (module, "0") for module in COMMANDS
  ]


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("libtpu"), reason="libtpu is not installed")
def test_an_installation_compiles_kernels_with_the_extra_tpu(installation, wheel, tmp_path):
  arguments = ("kernels", "--kernels=pallas", "--only=1x1x256x256")
  with pytest.raises(
    AssertionError, match=r"^error: package libtpu is not installed; [^\n]*\s+assert "
  ):
    installation.run(*arguments)
  printed = Installation(wheel, tmp_path, extras=["tpu"]).run(*arguments)
  assert "sgd_agc 1x1x256x256" in printed


def test_the_page_lists_all_extras():
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
  page = (ROOT / "docs" / "installation.md").read_text()
  rows = re.findall(r"^\| (`[a-z-`, ]+`) \|", page, re.MULTILINE)
  listed = {extra for row in rows for extra in re.findall("[a-z-]+", row)}
  # Before 23.3, pip finds no extra whose name is not normalized, and only warns.
  assert listed == set(map(canonical, settings["project"]["optional-dependencies"]))
  assert listed == settings["project"]["optional-dependencies"].keys()
