import os
import subprocess
import sys

import pytest

from nfnet import command_line

PROGRAM = """
import jax
from nfnet.command_line import skip_absent_tpu
skip_absent_tpu()
print(jax.devices()[0].platform)
"""


def test_a_program_starts_without_a_complaint_about_the_absent_tpu():
  environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
  )
  assert result.stdout == "cpu\n"
  assert result.stderr == ""


@pytest.fixture
def no_choice(monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  # JAX is to look as if not imported, because this process has its devices already.
  monkeypatch.delitem(sys.modules, "jax", raising=False)
  monkeypatch.setattr(command_line, "_GPU_PLUGINS", ())
  monkeypatch.setattr(
    command_line.importlib.util, "find_spec", lambda name: object() if name == "libtpu" else None
  )
  yield
  os.environ.pop("JAX_PLATFORMS", None)


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_a_tpu_is_left_alone(no_choice, tmp_path, device):
  (tmp_path / device).parent.mkdir(exist_ok=True)
  (tmp_path / device).touch()
  command_line.skip_absent_tpu(str(tmp_path))
  assert "JAX_PLATFORMS" not in os.environ


def test_without_one_the_cpu_is_chosen(no_choice, tmp_path):
  (tmp_path / "vfio").mkdir()
  (tmp_path / "vfio" / "vfio").touch()
  command_line.skip_absent_tpu(str(tmp_path))
  assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_a_gpu_is_left_alone(no_choice, tmp_path, monkeypatch):
  monkeypatch.setattr(command_line, "_GPU_PLUGINS", ("libtpu",))
  command_line.skip_absent_tpu(str(tmp_path))
  assert "JAX_PLATFORMS" not in os.environ


def test_the_users_choice_stands(no_choice, tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  command_line.skip_absent_tpu(str(tmp_path))
  assert os.environ["JAX_PLATFORMS"] == "tpu"
