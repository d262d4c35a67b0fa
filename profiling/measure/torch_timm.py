r"""Measures a training step of timm's NFNet in PyTorch; `profiling.gpu` runs it as a process.

    python -m profiling.measure.torch_timm --model=dm_nfnet_f0 --batch_size=128 --pixels=224 \
        --steps=20

The step is the same as this project's: forward and backward pass in bfloat16 (autocast), channels
last, AGC and Nesterov momentum, images already on the device. Prints one line of JSON. Needs torch
and timm, which this project does not depend on.
"""

import argparse
import json
import time
from typing import Any

_WARMUP_STEPS = 5


def measure(
  model_name: str, *, batch_size: int, pixels: int, steps: int, compiled: bool, device: str
) -> dict[str, Any]:
  """Returns the mean time of a step, and the device and versions that ran it.

  Args:
    model_name: timm's name of the network.
    batch_size: number of images per step.
    pixels: side of an image.
    steps: number of timed steps, which follow a few that are not timed.
    compiled: whether to use torch.compile.
    device: "cuda" or "cpu".
  """
  import timm
  import torch
  from timm.utils.agc import adaptive_clip_grad

  # The few products that remain in float32 use the GPU's fast mode.
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.backends.cudnn.allow_tf32 = True
  torch.backends.cudnn.benchmark = True
  torch.manual_seed(0)
  model = timm.create_model(model_name, pretrained=False, num_classes=1000)
  model = model.to(device=device, memory_format=torch.channels_last).train()
  # AGC clips everything but the classifier.
  clipped = [value for name, value in model.named_parameters() if not name.startswith("head.fc")]
  optimizer = torch.optim.SGD(
    model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=2e-5
  )
  images = torch.randn(batch_size, 3, pixels, pixels, device=device)
  images = images.contiguous(memory_format=torch.channels_last)
  labels = torch.randint(0, 1000, (batch_size,), device=device)
  forward = torch.compile(model) if compiled else model

  def step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype=torch.bfloat16):
      loss = torch.nn.functional.cross_entropy(forward(images), labels, label_smoothing=0.1)
    loss.backward()
    adaptive_clip_grad(clipped, clip_factor=0.01)
    optimizer.step()
    return loss

  def synchronize():
    if device == "cuda":
      torch.cuda.synchronize()

  for _ in range(_WARMUP_STEPS):
    step()
  synchronize()
  started = time.perf_counter()
  for _ in range(steps):
    loss = step()
  synchronize()
  seconds = (time.perf_counter() - started) / steps
  if not torch.isfinite(loss):
    raise ValueError(f"the loss is {loss.item()}")
  return {
    "step_seconds": seconds,
    "images_per_second": batch_size / seconds,
    "device_kind": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    "versions": {"torch": torch.__version__, "timm": timm.__version__},
  }


def main() -> None:
  """Prints the measurement that the arguments ask for."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--model", required=True)
  parser.add_argument("--batch_size", type=int, required=True)
  parser.add_argument("--pixels", type=int, required=True)
  parser.add_argument("--steps", type=int, required=True)
  parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
  parser.add_argument("--eager", action="store_true", help="without torch.compile")
  values = parser.parse_args()
  print(
    json.dumps(
      measure(
        values.model,
        batch_size=values.batch_size,
        pixels=values.pixels,
        steps=values.steps,
        compiled=not values.eager,
        device=values.device,
      )
    )
  )


if __name__ == "__main__":
  main()
