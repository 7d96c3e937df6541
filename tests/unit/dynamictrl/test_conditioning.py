"""Prompts, the reference image and its masks."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, T5EncoderModel

from dynamictrl import conditioning, latents
from dynamictrl.errors import InputError
from dynamictrl.mini.tiny import tiny_vae
from dynamictrl.mini.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def text_models(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model / "tokenizer")
    return tokenizer, T5EncoderModel.from_pretrained(tiny_model / "text_encoder").eval()


@torch.no_grad()
def test_prompts_are_padded_and_cut_to_one_length(text_models):
    embeds = conditioning.encode_prompt(*text_models, ["a person", "red " * 50], 16)
    assert embeds.shape == (2, 16, 32)
    alone = conditioning.encode_prompt(*text_models, ["a person"], 16)
    torch.testing.assert_close(embeds[:1], alone)


@torch.no_grad()
def test_padding_is_attended_as_in_cogvideox(text_models):
    tokenizer, encoder = text_models
    ids = tokenizer(["a person"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert torch.equal(conditioning.encode_prompt(tokenizer, encoder, ["a person"], 16), encoder(ids)[0])


def test_the_empty_prompt_is_encoded_once_and_kept(text_models):
    tokenizer, encoder = text_models
    prompts = conditioning.PromptEncoder(tokenizer, encoder, 16)
    runs = []
    handle = encoder.register_forward_hook(lambda *_: runs.append(1))
    mixed = prompts(["", "a red wall", ""])
    prompts(["", ""])
    handle.remove()
    assert len(runs) == 2  # the empty prompt, and the one that is not
    assert torch.equal(mixed[0], mixed[2])
    with torch.no_grad():
        torch.testing.assert_close(mixed, conditioning.encode_prompt(tokenizer, encoder, ["", "a red wall", ""], 16))


@torch.no_grad()
def test_the_reference_comes_first_and_zeros_follow():
    torch.manual_seed(0)
    vae = tiny_vae().eval()
    image = conditioning.to_pixels(np.full((1, 16, 16, 3), 200, np.uint8))[:, :, 0]
    made = conditioning.reference_latents(vae, image, 4, sample=False)
    assert made.shape == (1, 4, 16, 2, 2)
    assert made[:, 1:].abs().max() == 0
    plain = latents.encode(vae, image[:, :, None], sample=False)
    torch.testing.assert_close(made[:, :1], plain / 0.7 / 0.7)
    unscaled = conditioning.reference_latents(vae, image, 4, sample=False, rule="unscaled")
    torch.testing.assert_close(unscaled[:, :1], plain / 0.7)


def test_pixels_run_from_minus_one_to_one():
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    frames[1, 0, 0] = (255, 0, 127)
    pixels = conditioning.to_pixels(frames)
    assert pixels.shape == (1, 3, 2, 4, 6)
    assert pixels[0, :, 1, 0, 0].tolist() == pytest.approx([1, -1, 127 / 127.5 - 1])
    assert (pixels[0, :, 0] == -1).all()


def test_reference_noise_has_the_published_strength_and_follows_its_generator():
    image = torch.zeros(2000, 3, 4, 4)
    noisy = conditioning.perturb_reference(image, torch.Generator().manual_seed(0))
    strength = noisy.flatten(1).std(dim=1).log()
    assert strength.median() == pytest.approx(-3, abs=0.05)
    assert strength.std() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(noisy, conditioning.perturb_reference(image, torch.Generator().manual_seed(0)))


def test_a_mask_keeps_what_is_inside_or_outside_and_blackens_the_rest():
    image = np.full((4, 6, 3), 90, np.uint8)
    mask = np.zeros((4, 6), bool)
    mask[:2] = True
    inside = conditioning.mask_reference(image, mask)
    outside = conditioning.mask_reference(image, mask, keep="outside")
    assert (inside[:2] == 90).all()
    assert (inside[2:] == 0).all()
    assert np.array_equal(inside + outside, image)
    with pytest.raises(InputError, match="mask is 3x4 and the image 6x4"):
        conditioning.mask_reference(image, mask[:, :3])


def test_a_mask_picture_keeps_what_is_bright():
    picture = Image.fromarray(np.array([[0, 200], [201, 255]], np.uint8))
    assert conditioning.mask_from_picture(picture).tolist() == [[False, False], [True, True]]


def test_the_tokenizer_keeps_known_words_whole_and_comes_back_equal(tmp_path):
    tokenizer = build_tokenizer(["a woman in a red dress", "a man"], max_length=32)
    words = tokenizer("a woman in a red dress").input_ids
    assert len(words) == 7
    assert words[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0
    unknown = tokenizer("zebra!").input_ids
    assert len(unknown) > 5
    assert tokenizer.unk_token_id not in unknown
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a red zebra").input_ids == tokenizer("a red zebra").input_ids
    assert again.model_max_length == 32
