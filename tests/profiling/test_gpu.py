from profiling import gpu


def figures(speed):
  return {"images_per_second": speed, "device_kind": "a card"}


def test_speeds_stand_side_by_side():
  rows = [
    {"variant": "F0", "this_project": figures(1200.0), "timm": figures(1000.0)},
    {"variant": "F3", "this_project": figures(400.0), "timm": {"not_measured": "no timm"}},
  ]
  first, second = gpu.as_text(rows).splitlines()[-3:-1]
  assert first.split() == ["F0", "1200", "1000", "1.20", "a", "card"]
  assert "not measured: no timm" in second
  assert second.split()[:2] == ["F3", "400"]
