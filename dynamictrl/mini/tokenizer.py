"""A T5 tokenizer over a small vocabulary of words, for the mini text encoder; saved and loaded without a network."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterable

from transformers import T5Tokenizer

SPECIAL = ("<pad>", "</s>", "<unk>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def build_tokenizer(captions: Iterable[str], *, max_length: int = 64) -> T5Tokenizer:
    """A unigram tokenizer: each word of `captions` is one token, other words fall apart into letters.

    The more often a word is used the likelier its token; the same captions give the same tokenizer. Ids: 0 padding,
    1 end, 2 unknown, then words by falling count, then letters, digits and punctuation.
    """
    counts = Counter(word for caption in captions for word in caption.split())
    total = sum(counts.values()) + 1
    words = sorted(counts, key=lambda word: (-counts[word], word))
    scored = [(_SPACE + word, math.log(counts[word] / total)) for word in words]
    letters = [c for c in string.ascii_letters + string.digits + string.punctuation]
    # A letter is far less likely than any word, so that known words stay whole.
    rare = math.log(1 / total) - 10
    taken = {token for token, _ in scored}
    pieces = [(piece, rare) for piece in (_SPACE, *letters) if piece not in taken]
    vocabulary = [(token, 0.0) for token in SPECIAL] + scored + pieces
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=max_length)
