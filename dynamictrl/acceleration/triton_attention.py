"""Softmax attention for one forward pass, as a GPU kernel for Hopper: all tokens see all, 16 bits, no mask.

Between its two products an attention spends its time on softmax, at head size 64 as much as on the products. Queries
and keys are normalised per head in this model, so |q| |k| bounds every logit tightly: with that bound in the place of
the largest logit there is nothing to search for and nothing to rescale, and the answer is the same, as softmax does not
mind by what its terms are scaled. Where the bound is so large that terms could vanish (below 2^-120), a tile searches
as usual (the online softmax of FlashAttention).

On an H200 at 2 x 48 heads x 20,626 tokens x 64: 20.2 ms (518 TFLOP/s), with the search 25.2 ms; cuDNN 24.8 ms.

Shape suffixes: B batch, N heads, T tokens, K head width.
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

QUERIES, KEYS = 128, 64
"""A tile's."""
ROWS = 128
"""Keys whose lengths one program looks at."""


@triton.jit
def _tile(
    total, terms, largest, query, k, v, clip, head, start, tokens, scale,
    KEYS: tl.constexpr, K: tl.constexpr, LAST: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """One tile of keys: sums of terms and of values by terms go on."""
    key = k.load([clip, head, start, 0]).reshape([KEYS, K])
    logits = tl.dot(query, key.T)
    if LAST:
        logits = tl.where((start + tl.arange(0, KEYS))[None, :] < tokens, logits, float("-inf"))
    if BOUNDED:
        logits = logits * scale - largest[:, None]
    else:
        larger = tl.maximum(largest, tl.max(logits, 1) * scale)
        logits = logits * scale - larger[:, None]
        again = tl.exp2(largest - larger)
        total = total * again[:, None]
        terms = terms * again
        largest = larger
    value = v.load([clip, head, start, 0]).reshape([KEYS, K])
    share = tl.exp2(logits)
    terms += tl.sum(share, 1)
    total = tl.dot(share.to(value.dtype), value, total)
    return total, terms, largest


@triton.jit
def _sweep(
    query, k, v, largest, clip, head, tokens, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, K: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """A tile of queries over all keys."""
    total = tl.zeros((QUERIES, K), tl.float32)
    terms = tl.zeros((QUERIES,), tl.float32)
    whole = tokens // KEYS * KEYS
    for start in tl.range(0, whole, KEYS):
        total, terms, largest = _tile(
            total, terms, largest, query, k, v, clip, head, start, tokens, scale, KEYS, K, False, BOUNDED
        )
    if whole < tokens:
        total, terms, largest = _tile(
            total, terms, largest, query, k, v, clip, head, whole, tokens, scale, KEYS, K, True, BOUNDED
        )
    return total / terms[:, None]


@triton.jit
def _longest(k, longest, tokens, heads, ROWS: tl.constexpr, K: tl.constexpr):
    """The largest length of so many keys of a head; what lies beyond the last is zero."""
    clip, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    keys = k.load([clip, head, tl.program_id(0) * ROWS, 0]).reshape([ROWS, K]).to(tl.float32)
    length = tl.sqrt(tl.sum(keys * keys, 1))
    tl.store(longest + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.max(length, 0))


@triton.jit
def _attend(
    q, k, v, out, longest, tokens, scale, heads, QUERIES: tl.constexpr, KEYS: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    start = tl.program_id(0) * QUERIES
    head = tl.program_id(1) % heads
    clip = tl.program_id(1) // heads
    query = q.load([clip, head, start, 0]).reshape([QUERIES, K])
    wide = query.to(tl.float32)
    bound = tl.sqrt(tl.sum(wide * wide, 1)) * tl.load(longest + tl.program_id(1)) * scale
    # A logit lies within the bound on either side of 0, so no term is below 2^-120.
    if tl.max(bound, 0) < 60.0:
        answer = _sweep(query, k, v, bound, clip, head, tokens, scale, QUERIES, KEYS, K, True)
        out.store([clip, head, start, 0], answer.to(out.dtype).reshape([1, 1, QUERIES, K]))
    else:
        none = tl.full((QUERIES,), float("-inf"), tl.float32)
        answer = _sweep(query, k, v, none, clip, head, tokens, scale, QUERIES, KEYS, K, False)
        out.store([clip, head, start, 0], answer.to(out.dtype).reshape([1, 1, QUERIES, K]))


def attend(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor) -> Tensor:
    """The answer [B, N, T, K], laid out token by token; q and k have the same tokens."""
    batch, heads, tokens, width = q_BNTK.shape
    answer = _empty(q_BNTK)
    parts = torch.empty((batch * heads, triton.cdiv(tokens, ROWS)), dtype=torch.float32, device=q_BNTK.device)
    _longest[(parts.shape[1], batch * heads)](_tiles(k_BNTK, ROWS), parts, tokens, heads, ROWS=ROWS, K=width)
    longest = parts.amax(-1)
    _attend[(triton.cdiv(tokens, QUERIES), batch * heads)](
        _tiles(q_BNTK, QUERIES), _tiles(k_BNTK, KEYS), _tiles(v_BNTK, KEYS), _tiles(answer, QUERIES), longest, tokens,
        width**-0.5 * math.log2(math.e), heads, QUERIES=QUERIES, KEYS=KEYS, K=width, num_warps=4, num_stages=3,
    )  # fmt: skip
    return answer


def _empty(like: Tensor) -> Tensor:
    batch, heads, tokens, width = like.shape
    return like.new_empty((batch, tokens, heads, width)).transpose(1, 2)


def _tiles(x_BNTK: Tensor, rows: int) -> TensorDescriptor:
    return TensorDescriptor(x_BNTK, list(x_BNTK.shape), list(x_BNTK.stride()), [1, 1, rows, x_BNTK.shape[-1]])
