"""Tests the formats that other packages write, where these are installed."""

import dataclasses
import re
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.errors import UserError
from nfnet.export import jax_format, onnx_format, saved_model
from nfnet.export.onnx_format import images_first, write_onnx
from nfnet.export.program import Program, make_program
from nfnet.model import NFNet
from tests.repository import ROOT


@pytest.fixture(scope="module")
def program(classifier):
  return make_program(classifier, input_dtype="uint8", compute_dtype="float32")


def batches():
  rng = np.random.default_rng(4)
  return [rng.integers(0, 256, (n, 16, 16, 3), np.uint8) for n in (1, 3, 8)]


def assert_same(program, images, logits, probabilities):
  expected = jax.jit(program.function)(program.weights, images)
  atol = 1e-5 * np.abs(expected["logits"]).max()
  np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=atol)
  np.testing.assert_allclose(probabilities, expected["probabilities"], rtol=0, atol=1e-5)


def test_convolutions_with_images_first_give_the_same(program, images):
  weights = {name: jnp.asarray(value) for name, value in program.weights.items()}

  def function(images):
    return program.function(weights, images)

  def converted(images):
    return images_first(function, images)

  assert_same(program, images, *jax.jit(converted)(images).values())
  text = str(jax.make_jaxpr(converted)(images))
  assert "lhs_spec=(2, 3, 0, 1)" in str(jax.make_jaxpr(function)(images))
  assert "lhs_spec=(0, 3, 1, 2)" in text
  # What jax2onnx does not know.
  for absent in ("lhs_spec=(2, 3, 0, 1)", "platform_index", "cond["):
    assert absent not in text


def test_weights_beyond_a_protocol_buffer_are_refused(tmp_path):
  # Nothing is allocated.
  weights = {"large": np.broadcast_to(np.float32(0), (onnx_format.BYTES_MAX // 4 + 1,))}
  with pytest.raises(UserError, match=r"^weights of 2\.0 GB do not fit an ONNX file"):
    write_onnx(Program(lambda weights, images: {}, weights, 16, "uint8"), tmp_path)


def test_onnx_runtime_computes_the_same(program, tmp_path):
  pytest.importorskip("jax2onnx", reason="the extra onnx is not installed")
  onnxruntime = pytest.importorskip("onnxruntime", reason="a server's own package")
  write_onnx(program, tmp_path)
  session = onnxruntime.InferenceSession(tmp_path / onnx_format.FILE)
  (given,) = session.get_inputs()
  assert (given.name, given.shape, given.type) == ("images", ["images", 16, 16, 3], "tensor(uint8)")
  for images in batches():
    outputs = session.run(["logits", "probabilities"], {"images": images})
    assert_same(program, images, *outputs)


@pytest.mark.parametrize(
  ("module", "package", "message"),
  [
    (jax_format, "flatbuffers", "^flatbuffers, .* is not installed: pip install flatbuffers$"),
    (saved_model, "tensorflow", "^--format=saved_model needs .*: pip install orbax-export"),
    (onnx_format, "jax2onnx", "^--format=onnx needs jax2onnx .*: pip install 'jax2onnx>="),
  ],
)
def test_a_missing_package_is_noticed_before_there_is_a_program(
  module, package, message, monkeypatch
):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(UserError, match=message):
    module.import_packages()


def test_the_advice_to_install_jax2onnx_is_the_extra(monkeypatch):
  """Any other version may replace the orbax-checkpoint that this project needs."""
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  monkeypatch.setitem(sys.modules, "jax2onnx", None)
  with pytest.raises(UserError, match=re.escape(f"pip install '{extras['onnx'][0]}'")):
    onnx_format.import_packages()


def test_what_tensorflow_could_not_read_is_not_written(program, tmp_path):
  with pytest.raises(UserError, match=r"^TensorFlow, as of 2\.21, cannot read the exact gelu"):
    saved_model.write_saved_model(program, tmp_path)
  assert not list(tmp_path.iterdir())


def platforms_of(folder):
  """Returns the platforms of the StableHLO in a SavedModel."""
  from tensorflow.core.protobuf import saved_model_pb2

  (graph,) = saved_model_pb2.SavedModel.FromString(
    (folder / "saved_model.pb").read_bytes()
  ).meta_graphs
  (program,) = (
    node
    for function in graph.graph_def.library.function
    for node in function.node_def
    if node.op == "XlaCallModule"
  )
  return [platform.decode() for platform in program.attr["platforms"].list.s]


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_tensorflow_computes_the_same(classifier, compute_dtype, tmp_path):
  """TensorFlow reads the gelu of the released code."""
  pytest.importorskip("orbax.export", reason="the extra saved-model is not installed")
  tensorflow = pytest.importorskip("tensorflow", reason="the extra saved-model is not installed")
  released = dataclasses.replace(classifier, model=NFNet("tiny", 5))
  program = make_program(released, input_dtype="uint8", compute_dtype=compute_dtype)
  saved_model.write_saved_model(program, tmp_path)
  assert platforms_of(tmp_path / saved_model.FOLDER) == ["CPU", "CUDA", "TPU"]
  network = tensorflow.saved_model.load(str(tmp_path / saved_model.FOLDER))
  for images in batches():
    outputs = network.signatures["serving_default"](images=tensorflow.constant(images))
    if compute_dtype == "float32":
      assert_same(program, images, outputs["logits"], outputs["probabilities"])
    else:
      expected = jax.jit(program.function)(program.weights, jnp.asarray(images))["logits"]
      atol = 0.02 * np.abs(expected).max()
      np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=atol)
