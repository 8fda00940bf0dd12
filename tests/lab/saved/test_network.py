import pytest
import torch
from torch import nn

from condconv.errors import UsageError
from condconv.lab.saved.network import build_from_zoo, check_output, default_options, load_weights_, start_
from condconv.lab.train import train
from condconv.nn import CondConv2d
from tests.lab.samples import settings


@pytest.mark.parametrize(
    ("image_size", "stride"), [(8, 2), (16, 4), (31, 4), (32, 8), (64, 16), (127, 16), (128, None), (224, None)]
)
def test_small_images_keep_a_map_of_four_pixels(tmp_path, image_size, stride):
    config = settings(tmp_path, model="mobilenet_v1_025")
    assert default_options(config, image_size).get("output_stride") == stride
    # Networks of timm's keep at least an eighth, and what is no network of the zoo has no such option.
    other = default_options(settings(tmp_path, model="resnet_50"), image_size).get("output_stride")
    assert other == (None if stride is None else max(8, stride))
    assert default_options(settings(tmp_path, model="x"), image_size) == {}


def test_a_stride_that_is_given_stays(tmp_path):
    config = settings(tmp_path, model_options={"output_stride": 32})
    assert default_options(config, 8) == {"output_stride": 32}


def test_the_zoo_builds_by_name_and_says_what_is_wrong(tmp_path):
    network = build_from_zoo(settings(tmp_path, model="mobilenet_v1_025"), 7, 1)
    assert network.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(UsageError, match="`model` must be one of .*such as mobilenet_v1_"):
        build_from_zoo(settings(tmp_path, model="mobilenet_v1_24"), 7, 1)
    with pytest.raises(
        UsageError, match="`model_options` must be what mobilenet_v1_025 can be built with, got wings=2 .*wings"
    ):
        build_from_zoo(settings(tmp_path, model="mobilenet_v1_025", model_options={"wings": 2}), 7, 1)


def test_an_unknown_name_is_reported_before_the_data_is_opened(tmp_path):
    with pytest.raises(UsageError, match="`model` must be one of "):
        train(settings(tmp_path, model="mobilenet_v1_24", data=str(tmp_path / "missing")))


def test_the_trial_leaves_the_mode_and_the_statistics_alone():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3))
    check_output(network, 3, 1, 4)
    assert network.training
    assert network[0].num_batches_tracked == 0


def test_expert_dropout_reaches_every_routing_function(tmp_path):
    config = settings(tmp_path, model="mobilenet_v1_cc_025_4e", expert_dropout=0.3)
    network = build_from_zoo(config, 10, 1)
    start_(network, config)
    found = {name: each.expert_dropout for name, each in network.named_modules() if hasattr(each, "expert_dropout")}
    assert len(found) > 1
    assert set(found.values()) == {0.3}
    with pytest.raises(UsageError, match=r"`expert_dropout` must be 0 for a network without experts, got 0\.3"):
        start_(nn.Linear(1, 1), config)


def test_training_starts_from_a_file_of_the_static_twin(tmp_path):
    """The twin's kernel becomes all experts, so both compute the same; the classifier, for other classes, stays new."""
    static, twin = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 3)),
        nn.Sequential(CondConv2d(1, 4, 3, num_experts=2), nn.Flatten(), nn.Linear(4, 5)),
    )
    torch.save(static.state_dict(), tmp_path / "static.pt")
    start_(twin, settings(tmp_path, init_from=str(tmp_path / "static.pt"), init_skip="2.*"))
    image = torch.randn(2, 1, 3, 3)
    torch.testing.assert_close(twin[0](image), static[0](image))
    with pytest.raises(UsageError, match="2.weight"):
        start_(twin, settings(tmp_path, init_from=str(tmp_path / "static.pt")))


def test_an_image_too_small_for_experts_is_reported_as_one_for_static_layers():
    for conv in (nn.Conv2d(1, 2, 5), CondConv2d(1, 2, 5)):
        with pytest.raises(UsageError, match="`image_size` must suit the network, got 3"):
            check_output(nn.Sequential(conv, nn.Flatten()), 2, 1, 3)


def test_the_trial_leaves_frozen_norms_alone():
    network = nn.Sequential(nn.BatchNorm2d(1).eval(), nn.Flatten(), nn.Linear(16, 3))
    check_output(network, 3, 1, 4)
    assert [module.training for module in network] == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int32])
def test_numbers_of_another_kind_than_the_network_has_are_refused(dtype):
    network = nn.Linear(3, 2)
    state = {name: each.detach().to(dtype) for name, each in network.state_dict().items()}
    with pytest.raises(
        UsageError, match=rf"numbers of the network's kind, got x with weight \({dtype}, not torch.float32"
    ):
        load_weights_(network, state, "x")
    load_weights_(network, {name: each.half() for name, each in network.state_dict().items()}, "x")
