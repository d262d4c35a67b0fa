import os
import subprocess
import sys

import pytest
from absl import flags

import nfnet
from nfnet.command_line import flag_error_text, run_main, skip_absent_tpu

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


@pytest.mark.parametrize(
  ("arguments", "text"),
  [
    ([], "--first=VALUE and --second=VALUE are needed; --help shows all flags"),
    (["--first=1"], "--second=VALUE is needed; --help shows all flags"),
    (["--first", "1", "--second"], "--second has no value; write --second=VALUE"),
    (["--first=one"], "--first=one: must be a whole number"),
    (["--first=1", "--second=two"], "--second=two: must be a number"),
    (["--frist=1"], "unknown flag --frist; nearest: --first"),
    (["--nothing_like_it=1"], "unknown flag --nothing_like_it; --help shows all flags"),
  ],
)
def test_wrong_flags_are_one_line_that_says_what_to_write(arguments, text):
  values = flags.FlagValues()
  flags.DEFINE_integer("first", None, "", flag_values=values, required=True)
  flags.DEFINE_float("second", None, "", flag_values=values, required=True)
  with pytest.raises(flags.Error) as error:
    values(["program", *arguments])
  assert flag_error_text(error.value) == text


def test_a_command_tells_its_version(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["describe", "--version"])
  run_main(lambda arguments: pytest.fail("it was run"))
  assert capsys.readouterr().out == f"{nfnet.__version__}\n"
