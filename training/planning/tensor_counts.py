"""How many [tokens, width] tensors a transformer block keeps for its backward pass, each with where it is from."""

from __future__ import annotations

from training.config import Recipe

# Tensors of [tokens, width] in the model's precision, for a block with a pose stream (padaln), its inputs included.
INPUT_TENSORS = 2
"""Text and video, and the pose: what a block gets, kept under every policy."""
ATTENTION_TENSORS = 3
"""The inputs, and the attention's output (its log-sum is 1/32 of one and left out)."""
CHEAP_TENSORS = 12
"""Inputs 2, queries, keys and values 3, attention output 1, its projection 1, feed-forward 4 before its activation
and 1 after; norms, rotations and activations are computed again."""
WHOLE_TENSORS_COMPILED = 20
"""What torch's partitioner keeps of a compiled block that is left to itself: the same, queries and keys before their
norms 2, the inputs of both halves' first layers 2, and the feed-forward behind its activation 4. Counted on the CPU
(test_kept_tensors.py)."""
WHOLE_TENSORS_EAGER = 26
"""Every intermediate, counted likewise."""
LIVE_TENSORS_COMPILED = 25
"""Of the one block whose gradients are being computed, at its fullest: 45.8 GiB measured compiled at batch 1."""
LIVE_TENSORS_EAGER = 30
"""The same without compilation: 46.3, 55.5 and 78.3 GiB measured at batch sizes 1, 2 and 4, 11.4 GiB a sample."""
CROSS_ATTENTION_TENSORS = {"inputs": 0, "attention": 1, "cheap": 5, "whole": 9, "live": 9}
"""More for a second attention: its output; queries, keys, values and projection too; all that is kept, as counted."""
EXCHANGE_TENSORS = 4
"""More where workers share a clip: queries, keys, values and output on their way to another split."""


def is_compiled(recipe: Recipe) -> bool:
    """Whether blocks are compiled; under ZeRO-3, whose hooks would break their graphs, they are not."""
    return recipe.speed.compile_blocks and recipe.workers.device == "cuda" and recipe.workers.zero_stage != 3


def tensor_counts(recipe: Recipe) -> dict[str, float]:
    """How many [tokens, width] tensors a block keeps under each policy, and how many its own gradients take."""
    compiled, control = is_compiled(recipe), recipe.model.pose_control
    uncut = WHOLE_TENSORS_COMPILED if compiled else WHOLE_TENSORS_EAGER
    counts = {
        "inputs": INPUT_TENSORS,
        "attention": ATTENTION_TENSORS,
        "whole": CHEAP_TENSORS if recipe.speed.recompute != "none" else uncut,
        "live": LIVE_TENSORS_COMPILED if compiled else LIVE_TENSORS_EAGER,
    }
    if not control.startswith("padaln"):
        counts = {name: count - 1 for name, count in counts.items()}  # no stream of its own from block to block
    if control == "cross_attention":
        more = dict(CROSS_ATTENTION_TENSORS)
        if recipe.speed.recompute != "none":
            more["whole"] = more["cheap"]
        counts = {name: count + more[name] for name, count in counts.items()}
    if recipe.speed.sequence_parallel > 1:
        counts["live"] += EXCHANGE_TENSORS
    return {name: float(count) for name, count in counts.items()}
