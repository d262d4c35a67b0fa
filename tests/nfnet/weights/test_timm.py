import pytest

from nfnet.errors import UserError
from nfnet.weights.load import load_weights
from nfnet.weights.timm import save_timm, to_timm
from tests.nfnet.weights.whole_networks import without_memory

# From the state dict of timm 1.0.31's dm_nfnet_f0; its other sizes follow the same rules
# (https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/nfnet.py).
TIMM_F0 = {
  "stem.conv1.weight": (16, 3, 3, 3),
  "stem.conv4.gain": (128, 1, 1, 1),
  "stem.conv4.bias": (128,),
  "stages.0.0.skipinit_gain": (),
  "stages.0.0.downsample.conv.weight": (256, 128, 1, 1),
  "stages.0.0.conv1.weight": (128, 128, 1, 1),
  "stages.2.5.conv2.weight": (768, 128, 3, 3),
  "stages.2.5.conv2b.weight": (768, 128, 3, 3),
  "stages.2.5.conv3.weight": (1536, 768, 1, 1),
  "stages.3.2.attn_last.fc1.weight": (768, 1536, 1, 1),
  "stages.3.2.attn_last.fc2.bias": (1536,),
  "final_conv.gain": (3072, 1, 1, 1),
  "head.fc.weight": (1000, 3072),
  "head.fc.bias": (1000,),
}


def test_timm_names_and_shapes():
  shapes = {key: array.shape for key, array in to_timm(without_memory("F0"), "F0").items()}
  assert len(shapes) == 233
  assert shapes.items() >= TIMM_F0.items()


def test_timm_filters_are_oihw_and_matrices_output_first(parameters):
  tensors = to_timm(parameters, "P0")
  ours = parameters["blocks"]["1"]
  weight = ours["conv1"]["weight"]
  theirs = tensors["stages.1.0.conv2.weight"]
  assert theirs[3, 2, 1, 0] == weight[1, 0, 2, 3]
  squeeze = tensors["stages.1.0.attn_last.fc1.weight"]
  assert squeeze[2, 5, 0, 0] == ours["squeeze_excite"]["squeeze"]["weight"][5, 2]
  assert tensors["head.fc.weight"][3, 9] == parameters["classifier"]["weight"][9, 3]
  assert tensors["stages.1.0.conv2.gain"][4, 0, 0, 0] == ours["conv1"]["gain"][4]


def test_a_damaged_safetensors_file_is_an_error(parameters, tmp_path):
  path = tmp_path / "weights.safetensors"
  save_timm(str(path), parameters, "P0")
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(UserError, match="cannot be read, the file may be damaged"):
    load_weights(str(path), "P0")
