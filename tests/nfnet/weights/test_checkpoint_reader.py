import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.weights.checkpoint_reader import read_checkpoint
from train.run.checkpoints.manager import Checkpoints


def params(step):
  return {"stem": {"w": jax.random.normal(jax.random.key(step), (3, 4))}, "block": {}}


@pytest.fixture
def workdir(tmp_path):
  with Checkpoints(str(tmp_path), keep=2) as checkpoints:
    for step, ema in ((9, True), (10, False)):
      checkpoints.save(
        step,
        parameters=params(step),
        ema=params(-step) if ema else None,
        optimizer={"momentum": params(0)},
        data_state={},
        metadata={"num_classes": 4},
        metrics={"evaluation_top1": 1 / step},
      )
  # A save that was killed leaves such a folder, which is not a checkpoint.
  (tmp_path / "checkpoints/11.orbax-checkpoint-tmp/params").mkdir(parents=True)
  return tmp_path


@pytest.mark.parametrize("prefer_ema", [False, True])
@pytest.mark.parametrize(("path", "step"), [("", 10), ("checkpoints/10", 10), ("checkpoints/9", 9)])
def test_reads_params_and_metadata(workdir, path, step, prefer_ema):
  found, metadata = read_checkpoint(str(workdir / path), prefer_ema=prefer_ema)
  expected = params(-step if prefer_ema and step == 9 else step)
  assert metadata == {"num_classes": 4, "step": step, "run": metadata["run"]}
  assert found.keys() == expected.keys()
  assert found["block"] == {}
  assert type(found["stem"]["w"]) is np.ndarray
  assert found["stem"]["w"].dtype == np.float32
  assert found["stem"]["w"].tobytes() == np.asarray(expected["stem"]["w"]).tobytes()


def test_relative_path_is_fine(workdir, monkeypatch):
  monkeypatch.chdir(workdir)
  assert read_checkpoint(".")[1]["step"] == 10


def test_devices_of_the_writer_do_not_matter(tmp_path):
  code = """
    import sys
    import jax, jax.numpy as jnp
    from train.run.checkpoints.manager import Checkpoints

    mesh = jax.make_mesh((16,), ("data",))
    w = jax.device_put(jnp.arange(64.0), jax.NamedSharding(mesh, jax.P("data")))
    with Checkpoints(sys.argv[1], keep=1) as checkpoints:
      checkpoints.save(
        1, parameters={"w": w}, ema=None, optimizer={"w": w}, data_state={}, metadata={}
      )
  """
  environment = {
    "PYTHONPATH": ":".join(sys.path),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=16",
  }
  subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code), tmp_path], env=environment, check=True
  )
  assert len(jax.devices()) < 16
  found, _ = read_checkpoint(str(tmp_path))
  np.testing.assert_array_equal(found["w"], jnp.arange(64.0))


@pytest.mark.parametrize(
  ("path", "message"),
  [("absent", "there is no such folder"), ("checkpoints/9/ema", "holds no checkpoint")],
)
def test_path_without_checkpoint_is_named(workdir, path, message):
  path = str(workdir / path)
  with pytest.raises(UserError, match=f"{re.escape(path)}.*{message}"):
    read_checkpoint(path)


@pytest.mark.parametrize("pattern", ["params/d/*", "params/_METADATA", "experiment/metadata"])
def test_damaged_checkpoint_is_named(workdir, pattern):
  folder = workdir / "checkpoints/10"
  for file in folder.glob(pattern):
    file.write_bytes(file.read_bytes()[:-20])
  with pytest.raises(UserError, match=f"{re.escape(str(folder))} cannot be read"):
    read_checkpoint(str(workdir))
