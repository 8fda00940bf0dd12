"""Costs of the listed networks, as data: counting all of them takes half a minute.

They are for one image with 3 channels: of 224 pixels and 1000 classes, or of 32 pixels and 10 classes for `small_*`. A
slow test counts each network again.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """The cost of a network.

    Attributes:
        params: Number of parameters.
        madds: Multiply-adds for one image: convolutions, routing and mixing of kernels.
    """

    params: int
    madds: int


COSTS: dict[str, Cost] = {
    "mobilenet_v1_025": Cost(470_072, 41_030_272),
    "mobilenet_v1_cc_025_2e": Cost(927_986, 41_943_376),
    "mobilenet_v1_cc_025_4e": Cost(1_841_108, 42_856_480),
    "mobilenet_v1_cc_025_8e": Cost(3_667_352, 44_682_688),
    "mobilenet_v1_cc_025_16e": Cost(7_319_840, 48_335_104),
    "mobilenet_v1_cc_025_32e": Cost(14_624_816, 55_639_936),
    "mobilenet_v1_050": Cost(1_331_592, 149_497_088),
    "mobilenet_v1_cc_050_2e": Cost(2_623_234, 152_074_960),
    "mobilenet_v1_cc_050_4e": Cost(5_201_124, 154_652_832),
    "mobilenet_v1_cc_050_8e": Cost(10_356_904, 159_808_576),
    "mobilenet_v1_cc_050_16e": Cost(20_668_464, 170_120_064),
    "mobilenet_v1_cc_050_32e": Cost(41_291_584, 190_743_040),
    "mobilenet_v1_075": Cost(2_585_560, 325_400_448),
    "mobilenet_v1_cc_075_2e": Cost(5_087_762, 330_396_752),
    "mobilenet_v1_cc_075_4e": Cost(10_084_084, 335_393_056),
    "mobilenet_v1_cc_075_8e": Cost(20_076_728, 345_385_664),
    "mobilenet_v1_cc_075_16e": Cost(40_062_016, 365_370_880),
    "mobilenet_v1_cc_075_32e": Cost(80_032_592, 405_341_312),
    "mobilenet_v1_100": Cost(4_231_976, 568_740_352),
    "mobilenet_v1_cc_100_2e": Cost(8_321_570, 576_908_752),
    "mobilenet_v1_cc_100_4e": Cost(16_489_988, 585_077_152),
    "mobilenet_v1_cc_100_8e": Cost(32_826_824, 601_413_952),
    "mobilenet_v1_cc_100_16e": Cost(65_500_496, 634_087_552),
    "mobilenet_v1_cc_100_32e": Cost(130_847_840, 699_434_752),
    "mobilenet_v2_100": Cost(3_504_872, 300_774_272),
    "mobilenet_v2_cc_100_8e": Cost(27_457_768, 328_145_856),
    "mnasnet_a1_100": Cost(3_887_038, 311_579_072),
    "mnasnet_a1_cc_100_8e": Cost(14_984_718, 324_261_184),
    "resnet_50": Cost(25_557_032, 4_089_184_256),
    "resnet_cc_50_8e": Cost(130_193_472, 4_208_762_880),
    "efficientnet_b0": Cost(5_288_548, 385_814_752),
    "efficientnet_cc_b0_4e": Cost(13_314_116, 396_513_888),
    "efficientnet_cc_b0_8e": Cost(24_013_284, 407_213_024),
    "efficientnet_b0_depth": Cost(7_794_184, 569_651_680),
    "efficientnet_cc_b0_depth_8e": Cost(39_715_968, 606_131_552),
    "tf_efficientnet_b0": Cost(5_288_548, 385_814_752),
    "tf_efficientnet_cc_b0_4e": Cost(13_314_116, 396_513_888),
    "tf_efficientnet_cc_b0_8e": Cost(24_013_284, 407_213_024),
    "tf_efficientnet_b0_depth": Cost(7_794_184, 569_651_680),
    "tf_efficientnet_cc_b0_depth_8e": Cost(39_715_968, 606_131_552),
    "small_separable_100": Cost(10_762, 1_063_552),
    "small_separable_cc_100_8e": Cost(83_754, 1_145_488),
    "small_dense_100": Cost(15_698, 1_401_152),
    "small_dense_cc_100_8e": Cost(137_738, 1_538_352),
}
"""By name, for each of `condconv.list_models()`."""
