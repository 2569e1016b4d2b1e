"""The names of BN-Inception's weights."""

from proxynca_jax.weights.names import OHWI_FROM_OIHW, Names, Rule, head_rules, norm_rules

BN_INCEPTION = Names(
    # Both networks name their layers alike, so the last word of a key decides almost everything.
    rules=(
        *norm_rules("*_bn", "*_bn"),
        *head_rules("last_linear"),
        Rule("*.weight", "params/backbone/*/kernel", OHWI_FROM_OIHW),
        Rule("*.bias", "params/backbone/*/bias"),
    ),
    classifier="last_linear",
    published_blob_id="368e1ea536e18064a9a084dbcf9fc4ac98b62fcf",  # net/bn_inception_weights_pt04.pt of the reference
)
