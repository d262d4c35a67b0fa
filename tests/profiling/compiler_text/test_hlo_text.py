import pytest

from profiling.compiler_text.hlo_text import kind_of, parse, source_of

TEXT = """HloModule jit_step

%held (p: f32[8,8]) -> f32[8] {
  %p = f32[8,8]{1,0} parameter(0)
  %inner = f32[8]{0} reduce(%p), metadata={op_name="jit(step)/jvp(stem)/reduce_sum"}
  ROOT %dot = f32[8]{0} dot(%p, %inner), metadata={op_name="jit(step)/jvp(stage_1)/dot"}
}

%moved (p: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %copy = f32[8]{0} copy(%p.1)
}

ENTRY %main (a: f32[8,8], b: f32[8]) -> f32[8] {
  %a = f32[8,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %fusion.1 = f32[8]{0} fusion(%a), kind=kLoop, calls=%held
  %fusion.2 = f32[8]{0} fusion(%b), kind=kLoop, calls=%moved
  %convolution.1 = f32[8]{0} convolution(%a, %b)
  %plain = f32[8]{0} add(%convolution.1, %b)
  %late = f32[8]{0} tanh(%plain), metadata={op_name="jit(step)/transpose(jvp(stage_2))/tanh"}
  %early = f32[8]{0} add(%plain, %b), metadata={op_name="jit(step)/jvp(stage_2)/add"}
  %lost = f32[8]{0} negate(%b)
  %cudnn = f32[8]{0} custom-call(%a, %b), custom_call_target="__cudnn$convForward"
  %gemm = f32[8]{0} custom-call(%a, %b), custom_call_target="__cublas$gemm"
  %pallas = f32[8]{0} custom-call(%b), custom_call_target="tpu_custom_call"
  %sum-start = (f32[8]{0}, f32[8]{0}) all-reduce-start(%b)
  %sum-done = f32[8]{0} all-reduce-done(%sum-start)
  ROOT %moving-start = f32[8]{0} copy-start(%b)
}
"""


@pytest.fixture(scope="module")
def computations():
  computations, entry = parse(TEXT)
  assert entry == "main"
  return computations


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("fusion.1", "convolution"),
    ("fusion.2", "copy or layout"),
    ("convolution.1", "convolution"),
    ("plain", "elementwise or reduction"),
    ("cudnn", "convolution"),
    ("gemm", "convolution"),
    ("pallas", "kernel"),
    ("sum-start", "collective"),
    ("sum-done", "collective"),
    ("moving-start", "copy or layout"),
  ],
)
def test_kinds(computations, name, kind):
  assert kind_of(computations, computations["main"][name]) == kind


@pytest.mark.parametrize(
  ("name", "source"),
  [
    ("late", "jit(step)/transpose(jvp(stage_2))/tanh"),
    # A fusion has the source of the last instruction in it.
    ("fusion.1", "jit(step)/jvp(stage_1)/dot"),
    # Both passes use it: the backward pass uses what the forward pass computes.
    ("plain", "jit(step)/jvp(stage_2)/add"),
    ("convolution.1", "jit(step)/jvp(stage_2)/add"),
    ("lost", ""),
  ],
)
def test_sources(computations, name, source):
  assert source_of(computations, "main", computations["main"][name]) == source


def test_bytes_are_those_of_the_result(computations):
  assert computations["main"]["plain"].result_bytes == 32
  assert computations["main"]["a"].result_bytes == 256
  # The type of an asynchronous start has its operands and its results.
  assert computations["main"]["sum-start"].result_bytes == 32


def test_other_text_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    parse("a text")
