import jax
import pytest

from profiling.measure.trace_events import busy_share, module_name, read_events, rows_of

HLO = """HloModule jit_step, is_scheduled=true

%body (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %tanh.1 = f32[8]{0} tanh(%x), metadata={op_name="jit(step)/jvp(stage_3)/while/body/tanh"}
}

ENTRY %main (a: f32[8,8]) -> f32[8] {
  %a = f32[8,8]{1,0} parameter(0)
  %dot.1 = f32[8]{0} dot(%a, %a), metadata={op_name="jit(step)/jvp(stem)/dot_general"}
  %while.1 = f32[8]{0} while(%dot.1), condition=%cond, body=%body
  %dot.2 = f32[8]{0} dot(%a, %while.1)
  ROOT %all-reduce.1 = f32[8]{0} all-reduce(%dot.2), metadata={op_name="transpose(jvp(stem))/psum"}
}
"""


def statistic(name, value):
  return f'stats {{ metadata_id: {["hlo_op", "hlo_module"].index(name) + 1} str_value: "{value}" }}'


def plane(name, lines):
  """Returns the text of an XPlane with {line: [(event, statistics, start us, duration us)]}."""
  names = sorted({event[0] for events in lines.values() for event in events})
  text = f'name: "{name}"\n'
  for i, (line, events) in enumerate(lines.items()):
    text += f'lines {{ id: {i} name: "{line}" timestamp_ns: 0\n'
    for event, statistics, start_us, duration_us in events:
      text += (
        f"events {{ metadata_id: {names.index(event) + 1} offset_ps: {start_us * 10**6} "
        f"duration_ps: {duration_us * 10**6} "
        + " ".join(statistic(*item) for item in statistics.items())
        + " }\n"
      )
    text += "}\n"
  for i, event in enumerate(names):
    text += f'event_metadata {{ key: {i + 1} value {{ id: {i + 1} name: "{event}" }} }}\n'
  for i, stat in enumerate(("hlo_op", "hlo_module")):
    text += f'stat_metadata {{ key: {i + 1} value {{ id: {i + 1} name: "{stat}" }} }}\n'
  return f"planes {{ {text} }}\n"


def profile(*planes):
  return jax.profiler.ProfileData.from_text_proto("".join(planes))


def run_of(name, start_us, duration_us, module="jit_step"):
  return (name, {"hlo_op": name, "hlo_module": module}, start_us, duration_us)


def test_operations_are_those_of_the_program():
  data = profile(
    plane(
      "/device:GPU:0",
      {
        "Stream #13": [
          run_of("dot.1", 0, 10),
          run_of("dot.1", 50, 10, module="jit_other"),
          ("MemcpyH2D", {}, 60, 5),
        ]
      },
    )
  )
  (event,) = read_events(data, "jit_step")
  assert (event.plane, event.instruction) == ("/device:GPU:0", "dot.1")
  assert (event.start_ns, event.duration_ns) == (0, 10_000)


def test_a_tpus_operations_are_on_a_line_of_their_own():
  data = profile(
    plane(
      "/device:TPU:0",
      {
        "Steps": [("0", {}, 0, 100)],
        "XLA Modules": [("jit_step(1)", {}, 0, 100)],
        "XLA Ops": [("%dot.1 = f32[8]{0} dot(%a, %a)", {}, 3, 10), ("tanh.1", {}, 20, 5)],
      },
    )
  )
  events = read_events(data, "jit_step")
  assert [event.instruction for event in events] == ["dot.1", "tanh.1"]


def test_rows_are_for_one_run_and_leave_out_what_runs_others():
  events = read_events(
    profile(
      plane(
        "/host:CPU",
        {
          "a": [
            *(run_of("dot.1", start, 100) for start in (0, 1000)),
            *(run_of("while.1", start, 400) for start in (100, 1100)),
            *(run_of("tanh.1", start, 150) for start in (100, 300, 1100, 1300)),
          ],
          "b": [*(run_of("dot.2", start, 50) for start in (500, 1500))],
          "c": [*(run_of("all-reduce.1", start, 30) for start in (600, 1600))],
        },
      )
    ),
    "jit_step",
  )
  rows = rows_of(events, HLO, runs=2)
  assert [(row.part, row.direction, row.kind, round(row.seconds * 1e6)) for row in rows] == [
    ("stage 3", "forward", "elementwise or reduction", 300),
    ("stem", "forward", "convolution", 100),
    # It has no name of its own and belongs to the instruction that uses it.
    ("stem", "backward", "convolution", 50),
    ("stem", "backward", "collective", 30),
  ]


def test_events_of_another_program_make_no_table():
  events = read_events(profile(plane("/host:CPU", {"a": [run_of("other.1", 0, 1)]})), "jit_step")
  with pytest.raises(ValueError, match="no events of the program"):
    rows_of(events, HLO, runs=1)


def test_busy_is_the_union_of_threads_and_the_mean_of_devices():
  def share(*planes):
    return busy_share(read_events(profile(*planes), "jit_step"))

  first = plane(
    "/device:GPU:0",
    {"a": [run_of("dot.1", 0, 40), run_of("dot.1", 60, 20)], "b": [run_of("dot.2", 20, 30)]},
  )
  # 0 to 50 and 60 to 80 of 80.
  assert share(first) == pytest.approx(70 / 80)
  second = plane("/device:GPU:1", {"a": [run_of("dot.1", 100, 10), run_of("dot.1", 130, 10)]})
  assert share(first, second) == pytest.approx((70 / 80 + 20 / 40) / 2)
  with pytest.raises(ValueError, match="no events"):
    busy_share([])


def test_name_of_the_program():
  assert module_name(HLO) == "jit_step"
  with pytest.raises(ValueError, match="HloModule"):
    module_name("ENTRY %main")
