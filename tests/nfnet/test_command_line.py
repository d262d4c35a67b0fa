import os
import subprocess
import sys

import pytest

from nfnet.command_line import skip_absent_tpu

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


PROGRAM_WITH_NAMES = r"""
from nfnet.command_line import run_main
run_main(lambda arguments: print("caf\udce9 \u732b"))
"""


@pytest.mark.parametrize(
  ("encoding", "shown"),
  [("ascii", b"caf\\udce9 \\u732b\n"), ("utf-8", b"caf\\udce9 \xe7\x8c\xab\n")],
)
def test_what_the_output_cannot_encode_is_escaped(encoding, shown):
  environment = {**os.environ, "PYTHONIOENCODING": encoding}
  command = [sys.executable, "-c", PROGRAM_WITH_NAMES]
  result = subprocess.run(command, env=environment, capture_output=True, check=False)
  assert (result.returncode, result.stdout) == (0, shown), result.stderr


@pytest.fixture
def no_choice(monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  # JAX is to look as if not imported, because this process has its devices already.
  monkeypatch.delitem(sys.modules, "jax", raising=False)
  yield
  os.environ.pop("JAX_PLATFORMS", None)


def skip(devices, *installed):
  skip_absent_tpu(str(devices), is_installed=installed.__contains__)


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_a_tpu_is_left_alone(no_choice, tmp_path, device):
  (tmp_path / device).parent.mkdir(exist_ok=True)
  (tmp_path / device).touch()
  skip(tmp_path, "libtpu")
  assert "JAX_PLATFORMS" not in os.environ


def test_without_a_device_the_cpu_is_chosen(no_choice, tmp_path):
  (tmp_path / "vfio").mkdir()
  (tmp_path / "vfio" / "vfio").touch()
  skip(tmp_path, "libtpu")
  assert os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize("plugin", ["jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin"])
def test_a_gpu_is_left_alone(no_choice, tmp_path, plugin):
  skip(tmp_path, "libtpu", plugin)
  assert "JAX_PLATFORMS" not in os.environ


def test_without_libtpu_nothing_is_chosen(no_choice, tmp_path):
  skip(tmp_path)
  assert "JAX_PLATFORMS" not in os.environ


def test_the_users_choice_is_kept(no_choice, tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  skip(tmp_path, "libtpu")
  assert os.environ["JAX_PLATFORMS"] == "tpu"
