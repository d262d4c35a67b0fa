import json
import re
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.weights import checkpoint_reader
from nfnet.weights.checkpoint_digests import write_digests
from nfnet.weights.checkpoint_reader import read_checkpoint
from nfnet.weights.load import load_weights
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


def test_a_lost_moving_average_is_not_replaced_by_the_parameters(workdir):
  folder = workdir / "checkpoints/9"
  shutil.rmtree(folder / "ema")
  with pytest.raises(UserError, match="cannot be read: ema/"):
    read_checkpoint(str(folder))
  found, _ = read_checkpoint(str(folder), prefer_ema=False)
  assert found["stem"]["w"].tobytes() == np.asarray(params(9)["stem"]["w"]).tobytes()


@pytest.mark.parametrize("pattern", ["params/d/*", "params/_METADATA", "experiment/metadata"])
def test_damaged_checkpoint_is_named(workdir, pattern):
  folder = workdir / "checkpoints/10"
  for file in folder.glob(pattern):
    file.write_bytes(file.read_bytes()[:-20])
  with pytest.raises(UserError, match=f"{re.escape(str(folder))} cannot be read"):
    read_checkpoint(str(workdir))


def replace(folder, name, content):
  """Replaces a file as someone would who also makes the digests."""
  (folder / name).write_bytes(content)
  write_digests(folder)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "Expecting value"),
    (b"[" * 10**5, "values are nested too deeply"),
    (b'{"a":' * 10**5, "values are nested too deeply"),
    (b'{"step": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    (b'{"step": 1, "step": 2}', "the field 'step' is there twice"),
    (b"[]", r"the whole is \[\], must be an object"),
  ],
)
def test_hostile_metadata_are_one_line(workdir, content, message):
  folder = workdir / "checkpoints/10"
  replace(folder, "experiment/metadata", content)
  with pytest.raises(
    UserError, match=f"{re.escape(str(folder))}.* is damaged: .*{message}"
  ) as error:
    read_checkpoint(str(workdir))
  assert str(error.value).isprintable()
  assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b'{"step": "\\u001b[31m\\n"}', r"step is '\\x1b\[31m\\n', must be an integer"),
    (b'{"step": 1e999}', "step is inf, must be an integer"),
    (b'{"experiment": 3}', "experiment is 3, must be an object"),
    (b'{"experiment": {"model": ["F0"]}}', r"experiment.model is \['F0'\], must be an object"),
    (b'{"experiment": {"model": {"variant": {}}}}', "experiment.model.variant is a value of type"),
    (b'{"experiment": {"data": {"evaluation_pixels": 99999}}}', "evaluation_pixels is 99999, must"),
    (b'{"class_names": "cat"}', "class_names is 'cat', must be a list"),
    (b'{"class_names": [["cat"]]}', r"class_names\[0\] is \['cat'\], must be of type str"),
    (b'{"counts": {"images": -1}}', "counts.images is -1, must be an integer"),
    (b'{"left_out": [1]}', r"left_out\[0\] is 1, must be a list"),
    (b'{"run": 3}', "run is 3, must be of type str"),
    # A field that is called as the optional ones are marked does not hide the real one.
    (b'{"experiment?": {}, "experiment": 5}', "experiment is 5, must be an object"),
  ],
)
def test_metadata_of_an_unknown_structure_are_one_line(workdir, content, message):
  folder = workdir / "checkpoints/10"
  replace(folder, "experiment/metadata", content)
  with pytest.raises(
    UserError,
    match=f"{re.escape(str(folder))} was saved by a newer version, .*{message}.*; use the version",
  ) as error:
    read_checkpoint(str(workdir))
  assert str(error.value).isprintable()
  assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
  ("experiment", "message"),
  [
    ({}, "its metadata does not say which network it is"),
    (
      {"model": {"variant": "F0\x1b[31m\n", "activation": "gelu"}},
      r"this version knows no variant 'F0\\x1b\[31m\\n'",
    ),
    (
      {"model": {"variant": "F0", "activation": "\x07"}},
      r"this version knows no activation '\\x07'",
    ),
    (
      {"model": {"variant": "F0", "numerics": "jax"}},
      r"this version knows no numerics 'jax'",
    ),
    (
      {"model": {"variant": "F0"}, "data": {"evaluation_resize": "stretch"}},
      r"this version knows no evaluation_resize 'stretch'",
    ),
    ({"model": {"variant": "F0", "activation": "gelu"}}, "do not fit F0"),
  ],
)
def test_metadata_of_no_network_are_one_line(workdir, experiment, message):
  folder = workdir / "checkpoints/10"
  replace(
    folder, "experiment/metadata", json.dumps({"step": 10, "experiment": experiment}).encode()
  )
  with pytest.raises(UserError, match=message) as error:
    load_weights(str(workdir))
  assert str(error.value).isprintable()


def deep_tree(depth):
  keys = [{"key": f"k{i}", "key_type": 2} for i in range(depth)]
  value = {"value_type": "np.ndarray", "skip_deserialize": False}
  return {str(("k",)): {"key_metadata": keys, "value_metadata": value}}


@pytest.mark.parametrize(
  "content",
  [
    *(b"", b"[" * 10**5, b'{"tree_metadata": ' + b"9" * 5000 + b"}", b'{"tree_metadata": []}'),
    *(b"{}", json.dumps({"tree_metadata": deep_tree(5000)}).encode()),
    json.dumps({"tree_metadata": deep_tree(20), "use_ocdbt": True}).encode(),
    b'{"tree_metadata": {"\\u001b[31m\\n": {"key_metadata": 1}}}',
  ],
)
def test_hostile_metadata_of_the_arrays_are_one_line(workdir, content):
  replace(workdir / "checkpoints/10", "params/_METADATA", content)
  with pytest.raises(UserError) as error:
    read_checkpoint(str(workdir))
  assert str(error.value).isprintable()
  assert len(str(error.value)) < 1000


def test_arrays_that_claim_far_more_than_the_files_hold_are_not_read(tmp_path):
  """Zeros are stored as nothing, so such files are small."""
  zeros = {"w": jnp.zeros((2**12, 2**12))}
  with Checkpoints(str(tmp_path), keep=1) as checkpoints:
    checkpoints.save(
      1, parameters=zeros, ema=None, optimizer={"m": zeros["w"][0]}, data_state={}, metadata={}
    )
  assert read_checkpoint(str(tmp_path))[0]["w"].shape == (2**12, 2**12)
  metadata = tmp_path / "checkpoints/1/params/_METADATA"
  assert b"4096" in metadata.read_bytes()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint_reader, "_SMALL_BYTES", 2**20)
    with pytest.raises(UserError, match="arrays of 67108864 bytes in files of"):
      read_checkpoint(str(tmp_path))
