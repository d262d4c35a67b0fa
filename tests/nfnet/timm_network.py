"""timm's `dm_nfnet_f*` written out in NumPy and float64, from a state dict with timm's names.

It follows timm 1.0.31 (https://github.com/huggingface/pytorch-image-models, `nfnet.py` and
`std_conv.py`) and uses nothing of this project. Activations are NCHW, as in PyTorch.
"""

import math
from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]
_GAMMA = {"gelu": 1.7015043497085571, "silu": 1.7881293296813965}
_erf = np.vectorize(math.erf, otypes=[float])


def logits(state: State, images: np.ndarray, activation: str = "gelu") -> np.ndarray:
  """Returns float64 [n, classes] for normalized images [n, height, width, 3]."""
  state = {name: array.astype(np.float64) for name, array in state.items()}

  def act(x):
    return _GAMMA[activation] * _functions[activation](x)

  x = np.transpose(images.astype(np.float64), (0, 3, 1, 2))
  for i, stride in enumerate((2, 1, 1, 2)):
    x = _conv(state, f"stem.conv{i + 1}", act(x) if i else x, stride=stride)
  blocks = {tuple(map(int, key.split(".")[1:3])) for key in state if key.startswith("stages.")}
  expected_variance = 1.0
  for stage, index in sorted(blocks):
    x = _block(
      state,
      f"stages.{stage}.{index}",
      x,
      act,
      beta=expected_variance**-0.5,
      stride=2 if stage > 0 and index == 0 else 1,
    )
    expected_variance = (1.0 if index == 0 else expected_variance) + 0.2**2
  x = act(_conv(state, "final_conv", x)).mean(axis=(2, 3))
  return x @ state["head.fc.weight"].T + state["head.fc.bias"]


def _block(state, name, x, act, *, beta, stride):
  out = act(x) * beta
  shortcut = x
  if f"{name}.downsample.conv.weight" in state:
    pooled = out
    if stride == 2:
      n, c, height, width = out.shape
      pooled = out.reshape(n, c, height // 2, 2, width // 2, 2).mean(axis=(3, 5))
    shortcut = _conv(state, f"{name}.downsample.conv", pooled)
  out = _conv(state, f"{name}.conv1", out)
  out = _conv(state, f"{name}.conv2", act(out), stride=stride)
  out = _conv(state, f"{name}.conv2b", act(out))
  out = _conv(state, f"{name}.conv3", act(out))
  gate = out.mean(axis=(2, 3))
  for layer in ("fc1", "fc2"):
    weight, bias = (state[f"{name}.attn_last.{layer}.{leaf}"] for leaf in ("weight", "bias"))
    gate = gate @ weight[:, :, 0, 0].T + bias
    gate = np.maximum(gate, 0) if layer == "fc1" else 1 / (1 + np.exp(-gate))
  return 2.0 * out * gate[:, :, None, None] * state[f"{name}.skipinit_gain"] * 0.2 + shortcut


def _conv(state, name, x, stride=1):
  weight, gain, bias = (state[f"{name}.{leaf}"] for leaf in ("weight", "gain", "bias"))
  outputs, inputs, side, _ = weight.shape
  # Batch normalization in training mode, over the fan-in of each output channel.
  flat = weight.reshape(outputs, -1)
  deviations = flat - flat.mean(axis=1, keepdims=True)
  flat = deviations / np.sqrt(flat.var(axis=1, keepdims=True) + 1e-5)
  weight = (flat * gain.reshape(-1, 1) * flat.shape[1] ** -0.5).reshape(weight.shape)
  padding = [max((math.ceil(size / stride) - 1) * stride + side - size, 0) for size in x.shape[2:]]
  x = np.pad(x, ((0, 0), (0, 0), *((total // 2, total - total // 2) for total in padding)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(2, 3))
  windows = windows[:, :, ::stride, ::stride]
  groups = x.shape[1] // inputs
  parts = [
    np.tensordot(part, filters, axes=((1, 4, 5), (1, 2, 3)))
    for part, filters in zip(
      np.split(windows, groups, axis=1), np.split(weight, groups), strict=True
    )
  ]
  return np.moveaxis(np.concatenate(parts, axis=-1), -1, 1) + bias[:, None, None]


_functions = {
  "gelu": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
  "silu": lambda x: x / (1 + np.exp(-x)),
}
