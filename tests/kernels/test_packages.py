"""The names of the ops leave those of their packages alone."""

import pathlib
import types

import kernels
import kernels.fully_connected.reference
import kernels.scaled_ws_conv.reference as reference_of_convolution
import kernels.se_residual.reference
import kernels.sgd_agc.reference
import kernels.stem.reference

OPS = sorted(path.parent.name for path in pathlib.Path(kernels.__file__).parent.glob("*/op.py"))


def test_the_modules_of_an_op_are_attributes_of_its_package():
  assert kernels.scaled_ws_conv.reference is reference_of_convolution
  for op in OPS:
    assert isinstance(getattr(kernels, op).reference, types.ModuleType)


def test_no_public_name_is_that_of_a_package():
  assert not set(kernels.__all__) & set(OPS)
