import re

import jax
import pytest
from jax.sharding import PartitionSpec as P

from nfnet.model import NFNet, parameter_name
from nfnet.variants import VARIANTS
from tests.train.small_network import SMALL
from train.step.model import arranged_parameter_shapes
from train.step.parameter_groups import PARAMETER_GROUPS, parameter_role, parameter_roles
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import parameter_spec


def roles_by_name(model, mesh=None):
  roles = parameter_roles(model, mesh)
  return {parameter_name(path): role for path, role in jax.tree.leaves_with_path(roles)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_of_every_variant_follow_the_papers(variant):
  names = set()
  for name, role in roles_by_name(NFNet(variant, 10)).items():
    names.add(name)
    assert role.clipped == (name != "classifier/weight")
    assert role.decayed == name.endswith("/weight")
  for group in PARAMETER_GROUPS:
    assert any(re.fullmatch(group.pattern, name) for name in names)


def test_a_parameter_without_group_is_an_error():
  with pytest.raises(ValueError, match="'stem/extra' matches no pattern of PARAMETER_GROUPS"):
    parameter_role("stem/extra", (3,))


@pytest.mark.parametrize("block_execution", ["scan", "unrolled"])
def test_roles_are_in_the_arrangement_of_the_blocks(small_networks, block_execution):
  model = NFNet(SMALL.name, 10, block_execution=block_execution)
  roles = parameter_roles(model)
  assert jax.tree.structure(roles) == jax.tree.structure(arranged_parameter_shapes(model))
  for name, role in roles_by_name(model).items():
    assert role.stacked == ("blocks/2:4/" in name)
  assert any(role.stacked for role in jax.tree.leaves(roles)) == (block_execution == "scan")


@pytest.mark.parametrize("block_execution", ["scan", "unrolled"])
def test_weights_are_divided_along_their_outputs(small_networks, block_execution):
  model = NFNet(SMALL.name, 10, block_execution=block_execution)
  shapes = jax.tree.leaves(arranged_parameter_shapes(model))
  divided_elements, whole_elements = 0, 0
  roles = roles_by_name(model, make_mesh(parameter_shards=4))
  for (name, role), leaf in zip(roles.items(), shapes, strict=True):
    if name == "classifier/weight":
      assert role.sharded_axis == 0
    elif name.endswith("/weight"):
      assert leaf.ndim - role.stacked in (2, 4)
      assert role.sharded_axis == leaf.ndim - 1
    else:
      # Gains, biases and skip gains are units as a whole.
      assert role.sharded_axis is None
    if role.sharded_axis is None:
      whole_elements += leaf.size
    else:
      divided_elements += leaf.size
  assert whole_elements < 0.05 * divided_elements


def test_an_axis_that_does_not_divide_is_whole():
  assert parameter_spec(parameter_role("stem/conv0/weight", (3, 3, 3, 16), 3)) == P()
  divided = parameter_role("stem/conv0/weight", (3, 3, 3, 18), 3)
  assert parameter_spec(divided) == P(None, None, None, "shard")
  # 10 classes do not divide, the classifier's inputs do.
  assert parameter_spec(parameter_role("classifier/weight", (18, 10), 3)) == P("shard")


def test_one_shard_holds_everything_whole():
  for role in jax.tree.leaves(parameter_roles(NFNet("P0", 10), make_mesh())):
    assert role.sharded_axis is None


@pytest.mark.parametrize(
  ("name", "shape", "shards", "has_kernel"),
  [
    pytest.param("blocks/1/squeeze_excite/squeeze/weight", (2048, 1024), 8, True, id="F7+"),
    # XLA stores parts of 192 outputs by output.
    pytest.param("blocks/1/squeeze_excite/squeeze/weight", (1536, 768), 4, False, id="F0"),
    pytest.param("blocks/1/squeeze_excite/excite/weight", (768, 1536), 4, True, id="F0, excite"),
    pytest.param("blocks/2:4/squeeze_excite/excite/weight", (2, 768, 1536), 4, True, id="stacked"),
    pytest.param("blocks/1/squeeze_excite/excite/weight", (768, 1536), 1, False, id="whole"),
    pytest.param("blocks/1/squeeze_excite/excite/weight", (16, 32), 2, False, id="small"),
    pytest.param("classifier/weight", (3072, 30_000), 8, True, id="classifier"),
    pytest.param("blocks/1/conv2/weight", (1, 1, 1024, 2048), 8, False, id="convolution"),
  ],
)
def test_kernels_compute_gradients_of_divided_matrices(name, shape, shards, has_kernel):
  role = parameter_role(name, shape, shards, has_kernels=True)
  assert role.has_gradient_kernel == has_kernel
  assert not parameter_role(name, shape, shards, has_kernels=False).has_gradient_kernel
