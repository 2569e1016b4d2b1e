import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from convert.torch_network import TorchBNInception
from proxynca_jax.models.flops import forward_flops


@pytest.mark.parametrize("image_size", [64, 227])
def test_forward_flops_are_what_pytorch_counts(image_size):
    network = TorchBNInception({"embedding_layer": 64}).to("meta").eval()
    images = torch.empty(1, image_size, image_size, 3, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert forward_flops(image_size, 64) == counter.get_total_flops()
