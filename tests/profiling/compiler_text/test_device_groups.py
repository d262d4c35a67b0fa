import pytest

from profiling.compiler_text.device_groups import device_groups
from profiling.compiler_text.hlo_text import Instruction


@pytest.mark.parametrize(
  ("written", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
    ("source_target_pairs={{0,1},{1,2},{2,0}}", ((0, 1), (1, 2), (2, 0))),
    ("replica_groups=[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
    # The numbers 0 to 7 in two columns, read by columns.
    ("replica_groups=[2,4]<=[4,2]T(1,0)", ((0, 2, 4, 6), (1, 3, 5, 7))),
    ("replica_groups=[4,2]<=[2,2,2]T(2,0,1)", ((0, 2), (4, 6), (1, 3), (5, 7))),
    ("replica_groups={}", ()),
    ("", ()),
  ],
)
def test_groups_are_those_of_the_text(written, groups):
  rest = f"%x), channel_id=1, {written}, use_global_device_ids=true, to_apply=%add"
  assert device_groups(Instruction("sum", "all-reduce", "f32[8]", rest)) == groups
