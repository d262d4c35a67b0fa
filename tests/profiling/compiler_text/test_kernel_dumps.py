import dataclasses

import pytest

from profiling.compiler_text.chips import CHIPS
from profiling.compiler_text.kernel_dumps import dump_arguments, keep
from profiling.compiler_text.kernel_profiles import profile_kernel, read_profiles
from tests.profiling.compiler_text.bundle_excerpts import schedule, utilization

ALLOCATIONS = """$region0: #{matmul.2}
  #allocation0 [shape = 'u32[]', space=smem, size = 0x4, offset = 0x4, fixed_abs, tag = 'core']
  #allocation2 [shape = 'f32[512,512]', space=vmem, size = 0x100000, scoped, tag = 'scratch']
    #allocation6 [shape = 'u8[1048576]', space=vmem, size = 0x100000, scoped, tag = 'input window']
    #allocation9 [shape = 'u8[4096]', space=vmem, size = 4096, scoped, tag = 'input window']
"""
HLO = """HloModule jit_f

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %matmul.2 = f32[8]{0} custom-call(%x), TPU, "body":"A"
  %matmul.3 = f32[8]{0} custom-call(%matmul.2), TPU, "body":"A"
  %first_and_last.1 = f32[8]{0} custom-call(%matmul.3), TPU, "body":"B"
  ROOT %other.1 = f32[8]{0} custom-call(%first_and_last.1), custom_call_target="Sharding"
}
""".replace("TPU", 'custom_call_target="tpu_custom_call"')


def texts(kernel):
  return schedule(f"v4_{kernel}"), utilization(f"v4_{kernel}")


def test_profile_of_a_matrix_product():
  profile = profile_kernel(*texts("matmul"), ALLOCATIONS, chip=CHIPS["v4"])
  # See test_bundle_cycles.py for bundles and units.
  assert profile.bundles == 570_931
  assert not profile.is_upper_bound
  assert profile.utilization["MXU"] == pytest.approx(0.839, abs=1e-3)
  assert profile.vmem_bytes == 2 * 2**20 + 4096
  # Both cores: each operand once for each of the other's eight blocks, and the result.
  assert profile.hbm_bytes == (2 * 8 + 1) * 4096 * 4096 * 2
  # 571 MB take 475 us at 1.2e12 bytes a second, the bundles 544.
  assert profile.seconds(CHIPS["v4"]) == pytest.approx(570_931 / 1.05e9)


def test_without_a_grid_copies_come_before_and_after_work():
  profile = profile_kernel(*texts("matmul"), ALLOCATIONS, chip=CHIPS["v4"])
  assert profile.copies_overlap
  in_a_row = dataclasses.replace(profile, copies_overlap=False)
  assert in_a_row.seconds(CHIPS["v4"]) == pytest.approx(
    570_931 / 1.05e9 + profile.hbm_bytes / 1.2e12, rel=1e-3
  )


def test_spills_are_counted_as_often_as_they_are_issued():
  bundles, units = texts("first_and_last")
  lines = units.splitlines()
  start = next(i for i, line in enumerate(lines) if "UTILIZATION" in line) + 1
  profile = profile_kernel(bundles, units, ALLOCATIONS, chip=CHIPS["v4"])
  assert profile.spills == 0
  # A spill in the first bundle and a fill in the last, which are issued once.
  columns = [name.strip() for name in lines[1].split(",")]
  for line, unit in ((start, "VSTORE:SPILL"), (len(lines) - 1, "VLOAD:FILL")):
    numbers = lines[line].split()
    numbers[columns.index(unit)] = "1"
    lines[line] = " ".join(numbers)
  changed = profile_kernel(bundles, "\n".join(lines), ALLOCATIONS, chip=CHIPS["v4"])
  assert changed.spills == 2


def write_dumps(folder, name, kernel, number):
  bundles, units = texts(kernel)
  head = f"{number}-{name}"
  folder.mkdir(exist_ok=True)
  (folder / f"{head}-00-pre-finalize-registers-and-allocations.txt").write_text(
    ALLOCATIONS.replace("matmul.2", name)
  )
  (folder / f"{head}-01-final_hlo-static-per-bundle-utilization.txt").write_text(units)
  (folder / f"{head}-02-schedule-analysis_final_bundles.txt").write_text("something else")
  (folder / f"{head}-03-final_bundles.txt").write_text(bundles)


def test_equal_kernels_are_kept_once_and_all_else_is_forgotten(tmp_path):
  dumps, kept = tmp_path / "dumps", tmp_path / "kept"
  kept.mkdir()
  for i, (name, kernel) in enumerate(
    (
      ("matmul.2", "matmul"),
      ("matmul.3", "matmul"),
      ("first_and_last.1", "first_and_last"),
      ("fusion.1", "nested_loops"),
    )
  ):
    write_dumps(dumps, name, kernel, i)
  keep(dumps, HLO, kept)
  assert not list(dumps.iterdir())
  assert len(list(kept.glob("kernel_*.json.gz"))) == 2
  profiles = read_profiles(kept, CHIPS["v4"])
  assert {name: profile.bundles for name, profile in profiles.items()} == {
    "matmul.2": 570_931,
    "matmul.3": 570_931,
    "first_and_last.1": 459,
  }


def test_a_call_that_equals_another_has_its_texts(tmp_path):
  """The compiler writes about the first of equal calls only; others differ in type or body."""
  body = 'backend_config={"custom_call_config":{"body":"TUz"}}'
  call = 'custom_call_target="tpu_custom_call", ' + body
  hlo = f"""HloModule jit_f

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %y = f32[8]{{0:S(3)}} copy(%x)
  %k.1 = f32[8]{{0}} custom-call(%x), {call}
  %k.2 = f32[8]{{0}} custom-call(%k.1), {call}
  ROOT %k.3 = f32[8]{{0}} custom-call(%y), {call}
}}
"""
  write_dumps(tmp_path / "dumps", "k.1", "matmul", 0)
  with pytest.raises(FileNotFoundError, match=r"wrote nothing about k\.3$"):
    keep(tmp_path / "dumps", hlo, tmp_path)
  write_dumps(tmp_path / "dumps", "k.3", "first_and_last", 1)
  keep(tmp_path / "dumps", hlo, tmp_path)
  profiles = read_profiles(tmp_path, CHIPS["v4"])
  assert {name: profile.bundles for name, profile in profiles.items()} == {
    "k.1": 570_931,
    "k.2": 570_931,
    "k.3": 459,
  }


def test_a_kernel_without_dumps_is_an_error(tmp_path):
  (tmp_path / "dumps").mkdir()
  with pytest.raises(FileNotFoundError, match=r"nothing about matmul\.2, matmul\.3, first"):
    keep(tmp_path / "dumps", HLO, tmp_path)


def test_a_program_without_kernels_has_no_profiles(tmp_path):
  assert read_profiles(tmp_path, CHIPS["v4"]) == {}


def test_arguments_for_the_compiler_name_the_folder(tmp_path):
  assert f"--xla_jf_dump_to={tmp_path} " in dump_arguments(tmp_path)
