"""Counts bundles in the unabridged texts of libtpu 0.0.42.1 (jax 0.10.2) about small kernels.

`python -m tests.profiling.dump_kernels` writes these texts again. The addresses in the comments are
those of that version.
"""

import functools
import re

import pytest

from profiling.compiler_text.bundle_cycles import Loop, Region, count_bundles
from profiling.compiler_text.bundle_text import parse_schedule
from profiling.compiler_text.chips import CHIPS
from tests.profiling.compiler_text.bundle_excerpts import excerpt, schedule, utilization
from tests.profiling.compiler_text.static_profile import read_estimated_cycles, read_traced_bundles


@functools.cache
def counted(name, core=0):
  """Returns the count of an excerpt as it is."""
  return count_bundles(parse_schedule(schedule(name)), core=core)


def replaced(text, old, new):
  assert text.count(old) == 1
  return text.replace(old, new)


def matrix_products(text, count):
  """Returns the number of issued products of a [16, 128] and a [128, 128] matrix."""
  in_bundles = [
    line.count(" = vmatmul.")
    for line in text.splitlines()
    if re.match(r" *(0x[0-9a-f]+|0) .*: .*\{", line)
  ]
  assert len(in_bundles) == count.bundles
  return sum(n * times for n, times in zip(in_bundles, count.issues, strict=True))


@pytest.mark.parametrize("core", [0, 1])
def test_matmul_of_4096_with_blocks_of_512(core):
  text = schedule("v4_matmul")
  count = count_bundles(parse_schedule(text), core=core)
  # The same product was counted in another way before this parser existed.
  assert count.issue_cycles == pytest.approx(573_083, rel=0.02)
  # By hand: 8 * 8 * 8 / 2 steps of one core in 258 iterations; 32 steps begin a result, 32 end one.
  (loop,) = count.loops
  assert (loop.entries, loop.iterations, loop.bundles) == (1, 258, 2651)
  assert [(region.entered, region.bundles) for region in count.regions] == [
    (256, 2546),
    (32, 255),
    (32, 227),
  ]
  before, behind = 0x1B, 0xA7B - 0xA75
  assert count.issue_cycles == (
    before + 258 * (2651 - 2546) + 256 * (2546 - 255 - 227) + 32 * (255 + 227) + behind
  )
  # Half of all multiply-adds. Four units take 16 cycles for a product: the peak is 524,288 cycles.
  assert matrix_products(text, count) * 16 * 128 * 128 == 4096**3 // 2
  assert 524_288 / count.issue_cycles == pytest.approx(0.918, abs=5e-4)


def test_nested_loops():
  count = counted("v4_nested_loops")
  # The inner loop is 0x17 to 0x1b: its branch at 0x1a has one more bundle behind it. The outer loop
  # adds 0x16 before it and 0x1c and 0x1d after it. Around them are 0x0 to 0x15 and 0x1e to 0x2e.
  assert count.loops == (
    Loop(first_bundle=0x17, last_bundle=0x1B, entries=5, iterations=5 * 7),
    Loop(first_bundle=0x16, last_bundle=0x1D, entries=1, iterations=5),
  )
  assert count.issue_cycles == 22 + 5 * (3 + 7 * 5) + 17
  assert count.bundles == 0x2F
  assert count.branch_delay_bundles == 1
  assert not count.is_upper_bound


def test_nested_loops_with_four_bundles_behind_a_branch():
  count = counted("v5p_nested_loops")
  assert count.branch_delay_bundles == 4
  assert [(loop.entries, loop.iterations) for loop in count.loops] == [(5, 35), (1, 5)]


@pytest.mark.parametrize("steps", [1, 8, 1000])
def test_trip_count_is_that_of_the_text(steps):
  text = schedule("v4_nested_loops")
  text = replaced(text, "%s36_s24, 7 /* loop exit test */", f"%s36_s24, {steps} /* test */")
  assert count_bundles(parse_schedule(text)).issue_cycles == 22 + 5 * (3 + steps * 5) + 17


def test_regions_of_the_first_and_the_last_step():
  count = counted("v4_first_and_last")
  # 6 steps in 8 iterations of 0x8 to 0x4b. The branch at 0x24 jumps over 0x26 to 0x47 in the other
  # two. In it, the one at 0x29 jumps to 0x2b, which saves nothing since 0x2a is issued anyway, and
  # the one at 0x2e jumps over 0x30 to 0x35 but in the last step. Around the loop are 8 and 5.
  (loop,) = count.loops
  assert loop == Loop(first_bundle=0x8, last_bundle=0x4B, entries=1, iterations=8)
  core, step, first, last = count.regions
  assert (core.reached, core.entered) == (1, 1)
  assert step == Region(first_bundle=0x26, last_bundle=0x47, reached=8, entered=6, assumed=False)
  assert (first.bundles, first.reached, first.entered) == (0, 6, 1)
  assert last == Region(first_bundle=0x30, last_bundle=0x35, reached=6, entered=1, assumed=False)
  always = 30 + 4  # 0x8 to 0x25 and 0x48 to 0x4b
  in_a_step = 34 - 6  # 0x26 to 0x47 without 0x30 to 0x35
  assert count.issue_cycles == 8 + 8 * always + 6 * in_a_step + 6 + 5


@pytest.mark.parametrize("name", ["first_and_last", "nested_loops", "loop_by_data"])
def test_without_a_parallel_axis_the_second_core_does_nothing(name):
  count = counted(f"v4_{name}", core=1)
  # 0x0 to 0x3, from where it jumps to the last bundle.
  assert count.issue_cycles == 4 + 1
  assert count.issues[:4] == (1, 1, 1, 1)
  assert count.issues[-1] == 1


@pytest.mark.parametrize("core", [0, 1])
def test_each_core_has_half_of_an_odd_axis_rounded_up(core):
  count = counted("v4_odd_grid", core=core)
  # 5 steps for two cores are 3 each: the second core does step 0 once more. 5 iterations of 0x13
  # to 0x76, of which 0x4b to 0x6d are in a step; around the loop 19 and 4.
  assert count.issue_cycles == 19 + 5 * (100 - 35) + 3 * 35 + 4


def test_a_region_by_data_counts_as_entered():
  count = counted("v4_region_by_data")
  # 0x17 to 0x1b, nine times, is all of the region.
  assert [region.assumed for region in count.regions] == [False, True]
  assert count.is_upper_bound
  assert count.issue_cycles == 23 + 9 * 5 + 19


def test_a_region_by_data_leaves_unknown_what_it_sets():
  """The second loop has 39 steps if the region is entered, and 3 if not."""
  with pytest.raises(ValueError, match=r"trip count of the loop at bundles 0x23 to 0x25"):
    counted("v4_loop_after_region")


def test_a_loop_by_data_is_an_error():
  with pytest.raises(ValueError, match=r"trip count of the loop at bundles 0x17 to 0x1a"):
    counted("v4_loop_by_data")


def test_a_region_by_step_and_data_counts_for_its_step():
  region = counted("v4_region_by_step_and_data").regions[-1]
  assert (region.reached, region.entered, region.assumed) == (6, 1, True)


def test_a_loop_by_step():
  count = counted("v4_loop_by_step")
  # 3 steps, and 3 + 0 + ... + 8 = 39 in the third of four grid steps, after 9 that compute this.
  assert [(loop.entries, loop.iterations) for loop in count.loops] == [
    (1, 9),
    (4, 3 * 3 + 39),
    (1, 6),
  ]


@pytest.mark.parametrize("chip", ["v4", "v5p"])
def test_scalar_arithmetic(chip):
  """The chips divide in different ways."""
  count = counted(f"{chip}_arithmetic")
  in_steps = [region for region in count.regions if region.reached == 10]
  # Of steps 0 to 9: step % 3 == 0, step / 3 == 3, step * 2 - 9 < 0.
  assert [region.entered for region in in_steps] == [4, 1, 5]
  assert not count.is_upper_bound


def trip_count(*bundles):
  """Returns the iterations of a loop up to %x that follows the bundles, as the compiler writes it.

  Region 4, to which the bundles may branch, begins with the last of them.
  """
  bundles = [
    *(f"{{ {bundle} }}" for bundle in bundles[:-1]),
    f"{{ {bundles[-1]} }} /* Start region 4 */",
    "{ %s90_s1 = smov 0 }",
    "{ %s92_s1 = sadd.s32 1, %s91_s1  ;;  %s91_s1 = sphi %s90_s1, %s92_s1 } /* Start region 7 */",
    "{ %p93_p1 = scmp.ge.s32.totalorder %s92_s1, %x }",
    "{ %94 = sbr.rel (!%p93_p1) target = $region7 }",
    "{} /* End region 6 */",
    "{} /* exit bundle */",
  ]
  lines = [f" {address:#x}   :  {bundle}" for address, bundle in enumerate(bundles)]
  return (
    count_bundles(parse_schedule("\n".join(lines).replace("0x0 ", "0 ", 1))).loops[0].iterations
  )


DATA = "%s1_s2 = sld [smem:[#allocation9]]  ;;  %s3_s3 = smov 3"
PREDICATE_BY_DATA = "%p2_p2 = scmp.eq.s32.totalorder %s1_s2, 0"


@pytest.mark.parametrize(
  ("bundles", "trips"),
  [
    # An instruction that is not executed leaves the register as it was.
    (("%s3_s3 = smov 3", "%s4_s3 = smov (%p0_never), 9", "%x = sphi %s3_s3, %s4_s3"), 3),
    (("%s3_s3 = smov 3", "%s4_s3 = smov (!%p0_never), 9", "%x = sphi %s3_s3, %s4_s3"), 9),
    (("%x = smov (%p0_never, 5), 9",), 5),
    (("%s3_s3 = smov -2", "%x = ssub.s32 1, %s3_s3"), 3),
    (("%s3_s3 = smov 4294967294", "%x = smin.u32 7, %s3_s3"), 7),
    (("%s3_s3 = smov 4294967294", "%x = smax.s32 7, %s3_s3"), 7),
    (("%s3_s3 = smov 4294967280", "%x = sshrl.u32 %s3_s3, 28"), 15),
    (("%s3_s3 = smov 4294967280", "%s4_s3 = sshra.s32 %s3_s3, 2", "%x = sadd.s32 9, %s4_s3"), 5),
    (("%1 = sdivrem.u32 17, 5 /* kDiv */", "%x = spop.drf %1"), 3),
    (("%1 = sdivrem.u32 17, 5 /* kRem */", "%x = spop.drf %1"), 2),
    # The value is known although the predicate is not.
    ((DATA, PREDICATE_BY_DATA, "%x = scalar_select %p2_p2, 4, 4"), 4),
    # A load reads the value from before its bundle.
    (
      (
        "%s3_s3 = smov 3  ;;  %s4_s4 = smov 4",
        "%5 = sst [smem:[#allocation5_spill]] %s3_s3",
        "%6 = sst [smem:[#allocation5_spill]] %s4_s4  ;;  %x = sld [smem:[#allocation5_spill]]",
      ),
      3,
    ),
    # A store to another allocation.
    (
      (
        DATA,
        "%5 = sst [smem:[#allocation5]] %s3_s3",
        "%6 = sst [smem:[#allocation6 + %s1_s2]] %s1_s2",
        "%x = sld [smem:[#allocation5]]",
      ),
      3,
    ),
    (("%x = smov 3 /* of /* two */ ;; %x = smov 4 } */",), 3),
  ],
)
def test_scalar_instructions(bundles, trips):
  never = "%s9_s9 = smov 1", "%p0_never = scmp.eq.s32.totalorder %s9_s9, 0"
  assert trip_count(*never, *bundles) == trips


@pytest.mark.parametrize(
  "bundles",
  [
    (DATA, "%x = sadd.s32 %s1_s2, %s3_s3"),
    ("%x = smul.f32 1.5, 2.0",),
    (DATA, PREDICATE_BY_DATA, "%x = scalar_select %p2_p2, 4, 5"),
    (DATA, PREDICATE_BY_DATA, "%x = smov (%p2_p2, %s3_s3), 4"),
    # The store may be to where the load is from.
    (
      DATA,
      "%5 = sst [smem:[#allocation5]] %s3_s3",
      "%6 = sst [smem:[#allocation5 + %s1_s2]] %s1_s2",
      "%x = sld [smem:[#allocation5]]",
    ),
    # The region, of one bundle, was assumed to be entered. Behind it, its predicate is unknown
    # again, and the instruction that was moved to before the branch may have been executed or not.
    (
      DATA,
      PREDICATE_BY_DATA,
      "%4 = sbr.rel (%p2_p2) target = $region4",
      "%s5_s5 = smov 5",
      "%s6_s5 = smov 6",
      "%x = smov (%p2_p2, %s3_s3), 4",
    ),
    (
      DATA,
      PREDICATE_BY_DATA,
      "%s4_s3 = smov (!%p2_p2), 9",
      "%4 = sbr.rel (%p2_p2) target = $region4",
      "%s5_s5 = smov 5",
      "%s6_s5 = smov 6",
      "%x = sphi %s3_s3, %s4_s3",
    ),
  ],
)
def test_scalars_by_data_are_not_known(bundles):
  with pytest.raises(ValueError, match="trip count of the loop"):
    trip_count(*bundles)


def test_libtpus_trace_takes_a_remainder_for_0():
  count = counted("v5p_every_third")
  region = count.regions[-1]
  assert (region.reached, region.entered) == (10, 4)  # steps 0, 3, 6 and 9
  traced = read_traced_bundles(excerpt("v5p_every_third_trace_end.txt"))
  assert traced - count.issue_cycles == (10 - 4) * region.bundles


@pytest.mark.parametrize(
  ("name", "share_of_estimated_cycles"),
  [
    ("matmul", 0.874),
    ("normalize", 0.391),
    ("convolution_3x3", 0.747),
    ("weight_gradient", 0.510),
    ("nested_loops", 0.219),
  ],
)
def test_against_libtpus_own_profile(name, share_of_estimated_cycles):
  """The compiler's estimate includes waits for copies and results, which no schedule shows.

  They are a larger share of smaller kernels; the matrix product is the largest kernel here.
  """
  cycles = counted(f"v5p_{name}").issue_cycles
  assert cycles == read_traced_bundles(excerpt(f"v5p_{name}_trace_end.txt"))
  estimated = read_estimated_cycles(excerpt(f"v5p_{name}_static_llo_profile.textproto"))
  assert cycles / estimated == pytest.approx(share_of_estimated_cycles, abs=5e-4)


def test_profiles_that_say_nothing_are_refused():
  text = excerpt("v5p_matmul_static_llo_profile.textproto")
  # The compiler writes this where it gave up.
  gave_up = replaced(text, "estimated_cycles: 620845", "estimated_cycles: 0")
  with pytest.raises(ValueError, match=r"no estimate for matmul\.1"):
    read_estimated_cycles(gave_up)
  with pytest.raises(ValueError, match="0 names"):
    read_estimated_cycles("")
  with pytest.raises(ValueError, match="2 names"):
    read_estimated_cycles(text * 2)
  with pytest.raises(ValueError, match="traced bundle"):
    read_traced_bundles(text)


@pytest.mark.parametrize(
  ("kernel", "copied_bytes"),
  [
    # A core has 4 x 8 x 8 steps, each with new blocks of both operands, and writes 4 x 8 blocks.
    ("v4_matmul", (2 * 4 * 8 * 8 + 4 * 8) * 512 * 512 * 2),
    ("v5p_matmul", (2 * 4 * 8 * 8 + 4 * 8) * 512 * 512 * 2),
    # Six blocks in, one out at the end.
    ("v4_first_and_last", 7 * 8 * 128 * 4),
    # Three of five steps, one block in and one out.
    ("v4_odd_grid", 6 * 8 * 128 * 4),
    # Half of an array in and out.
    ("v5p_normalize", 4096 * 1024 * 2),
    # All of two arrays in, a block of sums out.
    ("v5p_weight_gradient", 2 * 4096 * 256 * 2 + 256 * 256 * 4),
    # Without a grid, once in and once out.
    ("v4_nested_loops", 2 * 8 * 128 * 4),
  ],
)
def test_copies_are_those_of_the_grids_blocks(kernel, copied_bytes):
  chip = CHIPS[kernel.split("_")[0]]
  count = counted(kernel)
  assert count.copied_granules * chip.copy_granule_bytes == copied_bytes


def test_copies_of_the_memory_between_count_as_those_of_hbm():
  """v4's compiler writes this for a result that it puts into CMEM."""
  text = schedule("v4_first_and_last")
  there = text.replace("dma.vmem_to_hbm [thread:$0] ", "dma.vmem_to_cmem ")
  assert there != text
  assert (
    count_bundles(parse_schedule(there)).copied_granules
    == count_bundles(parse_schedule(text)).copied_granules
  )


def test_a_copy_whose_size_depends_on_data_is_an_error():
  text = schedule("v4_first_and_last")
  changed = re.sub(r"/\*size_in_granules=\*/\d+", "/*size_in_granules=*/%s9999", text)
  assert changed != text
  with pytest.raises(ValueError, match=r"size of copy .* depends on data"):
    count_bundles(parse_schedule(changed))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda text: "", "final_bundles_text contains no bundle"),
    (lambda text: utilization("v4_nested_loops"), "final_bundles_text contains no bundle"),
    (lambda text: text[: text.index("  0x20 ")], "ends at 0x1f without the exit bundle"),
    (lambda text: text[: text.index("%s198_s19 = smov")], "bundle 0xb: has no end"),
    (lambda text: re.sub(r"\n  0x15 .*", "", text), "bundle 0x16 follows 0x14"),
    (lambda text: text.replace("$region47", "$region99"), "region 99, starts nowhere"),
    (lambda text: text.replace("sbr.rel (!%p26", "sbr.ind (!%p26"), "sbr.ind is not understood"),
    (lambda text: schedule("v4_odd_grid").replace("End region", "End"), "how many bundles follow"),
    (lambda text: text.replace("%s36_s24 = sadd.s32 1", "%s36_s24 = sadd.s32 0"), "misread"),
  ],
)
def test_other_texts_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    count_bundles(parse_schedule(change(schedule("v4_nested_loops"))), branches_max=1000)
