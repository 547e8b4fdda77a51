"""Names that other tools have for the layers of a transformer."""

from rlcm_cli.families._names import stack_layers

RULES = (
    *((rf"blocks\.(\d+)\.to_{one}", r"layer.\1.qkv") for one in "qkv"),
    (r"blocks\.(\d+)\.out", r"layer.\1.proj"),
)


def test_layers_that_are_one_elsewhere_follow_each_other_in_the_order_of_the_rules():
    layers = ["blocks.0.to_v", "blocks.0.to_k", "blocks.0.to_q", "blocks.1.to_q", "blocks.0.out", "other.blocks.0.out"]
    assert stack_layers(RULES, layers) == {
        "layer.0.qkv": ("blocks.0.to_q", "blocks.0.to_k", "blocks.0.to_v"),
        "layer.1.qkv": ("blocks.1.to_q",),
        "layer.0.proj": ("blocks.0.out",),
    }
