import pytest
import torch

from condconv.lab.config import TrainConfig
from condconv.lab.data.preprocessing import IMAGENET, Preprocessing
from condconv.lab.saved.checkpoint import Checkpoint, save_checkpoint
from condconv.models import create_model
from tests.lab.samples import make_folder

MODEL = "mobilenet_v1_cc_025_8e"
CLASSES = ("<img src=x onerror=alert(1)>", "cat", "dog")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A checkpoint, untrained, and a folder of images."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("report")
    data = make_folder(folder / "data", CLASSES)
    network = create_model(MODEL, num_classes=3, output_stride=8)
    with torch.no_grad():  # so that images of noise are told apart
        for name, parameter in network.named_parameters():
            if name.endswith("routing_fn.fc.weight"):
                parameter.mul_(50)
    config = TrainConfig(data=str(data), model=MODEL, out=str(folder), model_options={"output_stride": 8})
    preprocessing = Preprocessing(16, 3, 1.0, "bicubic", IMAGENET.mean, IMAGENET.std)
    saved = Checkpoint(config, config.model_options, CLASSES, preprocessing, (), 18, network.state_dict())
    save_checkpoint(folder / "best.safetensors", saved)
    return folder / "best.safetensors", data
