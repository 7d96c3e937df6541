"""A tokenizer with Qwen2's special tokens in which each word of a marionette caption is one token.

Any other text falls apart into bytes, so that nothing is unknown.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dynamictrl.captions.captioning import DEFAULT_PROMPT
from dynamictrl.mini.captioner.wording import every_word

PADDING, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SPECIAL = (PADDING, BEGIN, END, VISION_START, VISION_END, IMAGE, VIDEO)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""One turn of a talk as Qwen2-VL writes it, without a system message."""

# A word keeps its hyphens ("t-shirt") and the space before it.
_WORD = Regex(r" ?[\p{L}\p{N}'-]+| ?[^\s\p{L}\p{N}'-]+|\s+")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Ids: the 256 bytes, then the words of captions and of the prompt in alphabetical order, then special tokens."""
    pieces = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_WORD, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    texts = [*every_word(), DEFAULT_PROMPT, "user\n", "assistant\n"]
    words = {piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, *sorted(words - set(letters))])}
    # Without merges a word is either known as a whole or written byte by byte.
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    plain.pre_tokenizer = pieces  # pyright: ignore[reportAttributeAccessIssue]
    plain.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token=END,
        pad_token=PADDING,
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one known token."""
    return int(tokenizer.get_vocab()[token])


def question(tokenizer: PreTrainedTokenizerFast, video_tokens: int, prompt: str = DEFAULT_PROMPT) -> list[int]:
    """The ids of everything before the answer, with the video's placeholder repeated for each of its tokens."""
    content: Any = [{"type": "video"}, {"type": "text", "text": prompt}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(str(text).replace(VIDEO, VIDEO * video_tokens))["input_ids"]
