"""The networks whose weights can be converted. The keys are those of `models.BACKBONES`."""

from convert.bn_inception import BN_INCEPTION
from convert.converter import Converter

CONVERTERS: dict[str, Converter] = {
    "bn_inception": BN_INCEPTION,
}
