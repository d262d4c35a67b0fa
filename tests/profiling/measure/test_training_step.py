import pytest

from profiling.compiler_text.chips import CHIPS
from profiling.measure.training_step import Measurement


def measurement(device_kind, devices, cores_per_device):
  return Measurement(
    platform="tpu",
    device_kind=device_kind,
    devices=devices,
    cores_per_device=cores_per_device,
    images_per_step=128,
    training_flops_per_image=10**11,
    steps=1,
    step_seconds=0.1,
    traced_step_seconds=0.1,
    busy_share=1.0,
    rows=(),
    versions={},
  )


@pytest.mark.parametrize(("devices", "cores_per_device"), [(4, 2), (8, 1)])
def test_core_hours_and_mfu_do_not_depend_on_how_a_chip_is_split(devices, cores_per_device):
  measured = measurement("TPU v4", devices, cores_per_device)
  assert measured.chips == 4
  # 1280 images/s of 1e11 FLOP on four chips; a million images take 781 s of eight cores.
  assert measured.mfu == pytest.approx(1280 * 1e11 / (4 * CHIPS["v4"].peak_flops))
  assert measured.hours_per_million_images == pytest.approx(8 * 1e6 / 1280 / 3600)


def test_other_devices_have_hours_and_no_mfu():
  measured = measurement("NVIDIA H100", 2, 1)
  assert measured.chips is None
  assert measured.mfu is None
  assert measured.hours_per_million_images == pytest.approx(2 * 1e6 / 1280 / 3600)
