"""The transformer against diffusers' own, and against the published checkpoints' keys and shapes."""

import json

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.mini.tiny import tiny_transformer
from dynamictrl.objective import ofs_for
from dynamictrl.pose_control import POSE_CONTROLS
from dynamictrl.positions import rotary_positions
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

SINCOS = {"use_rotary_positional_embeddings": False}
LEARNED = {"use_learned_positional_embeddings": True}
# Name: (tiny base, changes, latent frames, height, width). Sizes beyond the sample size stretch the positions.
SHAPES = {
    "2b": ("1.0", SINCOS, 3, 12, 8),
    "2b-other-size": ("1.0", SINCOS, 4, 8, 16),
    "5b": ("1.0", {}, 3, 12, 8),
    "5b-other-size": ("1.0", {}, 4, 8, 16),
    "5b-i2v": ("1.0", LEARNED, 4, 12, 8),
    "1.5-5b-i2v": ("1.5", {}, 4, 16, 12),
}

FULL = {"text_embed_dim": 4096, "in_channels": 32, "patch_bias": True}
FIVE_B = {**FULL, "num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True}
FULL_SIZES = {
    "2b": ({**FULL, "num_layers": 30, "num_attention_heads": 30}, 856, 1_782_668_352),
    "5b": (FIVE_B, 1192, 5_769_305_664),
    "5b-i2v": ({**FIVE_B, "use_learned_positional_embeddings": True}, 1193, 5_769_305_664),
    "1.5-5b-i2v": (
        {
            **FIVE_B,
            "patch_size_t": 2,
            "patch_bias": False,
            "ofs_embed_dim": 512,
            "sample_height": 300,
            "sample_width": 300,
            "sample_frames": 81,
        },
        1196,
        5_770_420_864,
    ),
}


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Gives every weight a value that shows, constants and zeros too."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def inputs_for(model, frames=4, height=12, width=8, batch=2, channels=32):
    """Random arguments of the forward, as a dictionary."""
    g = torch.Generator().manual_seed(3)
    config = model.config
    return {
        "hidden_states": torch.randn(batch, frames, channels, height, width, generator=g),
        "encoder_hidden_states": torch.randn(batch, 16, 32, generator=g),
        "timestep": torch.tensor([999, 40][:batch]),
        "control_hidden_states": torch.randn(batch, frames, 16, height, width, generator=g),
        "ofs": ofs_for(config, "cpu"),
        "image_rotary_emb": rotary_positions(config, frames, height, width, "cpu"),
        "return_dict": False,
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("control", ["padaln", "cross_attention"])
def test_without_pose_it_is_cogvideox(shape, control):
    base, changes, *size = SHAPES[shape]
    ours = spread(tiny_transformer(base, control, **changes))
    ours.silence_pose()
    theirs = CogVideoXTransformer3DModel.from_config({k: v for k, v in ours.config.items() if k != "pose_control"})
    state = {k: v for k, v in ours.state_dict().items() if ".control_norm1." not in k}
    theirs.load_state_dict(state)
    arguments = inputs_for(ours, *size)
    with torch.no_grad():
        got = ours(**arguments)[0]
        arguments.pop("control_hidden_states")
        wanted = theirs.eval()(**arguments)[0]
    assert got.shape == wanted.shape == (2, size[0], 16, *size[1:])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_unified_tokens_with_zero_pose_weights_are_cogvideox():
    ours = spread(tiny_transformer("1.0", "unified_tokens"))
    ours.patch_embed.proj.weight.data[:, 32:] = 0
    theirs = CogVideoXTransformer3DModel.from_config(
        {**{k: v for k, v in ours.config.items() if k != "pose_control"}, "in_channels": 32}
    )
    state = dict(ours.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :32]
    theirs.load_state_dict(state)
    arguments = inputs_for(ours)
    with torch.no_grad():
        got = ours(**arguments)[0]
        arguments.pop("control_hidden_states")
        torch.testing.assert_close(got, theirs.eval()(**arguments)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("control", POSE_CONTROLS)
def test_the_pose_changes_the_prediction_in_every_structure(control):
    torch.manual_seed(0)
    model = tiny_transformer(pose_control=control).eval()
    arguments = inputs_for(model)
    with torch.no_grad():
        one = model(**arguments)[0]
        arguments["control_hidden_states"] = -arguments["control_hidden_states"]
        other = model(**arguments)[0]
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("control", POSE_CONTROLS)
@pytest.mark.parametrize("base", ["1.0", "1.5"])
def test_every_structure_comes_back_equal_from_its_folder(control, base, tmp_path):
    model = spread(tiny_transformer(base, control))
    model.save_pretrained(tmp_path)
    again = DynamiCtrlTransformer3DModel.from_pretrained(tmp_path).eval()
    assert again.config["pose_control"] == control
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        # Not to the bit: a mapped file's tensors lie unaligned in memory, and other kernels are chosen for them.
        torch.testing.assert_close(model(**inputs_for(model))[0], again(**inputs_for(again))[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FULL_SIZES)
def test_full_size_models_have_the_published_keys_and_counts(name):
    config, keys, parameters = FULL_SIZES[name]
    with torch.device("meta"):
        model = DynamiCtrlTransformer3DModel(**config)
    state = model.state_dict()
    width, layers = 64 * config["num_attention_heads"], config["num_layers"]
    assert len(state) == keys
    assert sum(p.numel() for p in model.parameters()) == parameters
    for block in (0, layers - 1):
        prefix = f"transformer_blocks.{block}.control_norm1"
        assert state[f"{prefix}.linear.weight"].shape == (3 * width, 512)
        assert state[f"{prefix}.linear.bias"].shape == (3 * width,)
        assert state[f"{prefix}.norm.weight"].shape == state[f"{prefix}.norm.bias"].shape == (width,)
    if name == "1.5-5b-i2v":
        assert state["patch_embed.proj.weight"].shape == (3072, 256)
        assert "patch_embed.proj.bias" in state  # although the config says patch_bias false


def test_a_folder_under_the_published_class_name_loads(tmp_path):
    model = spread(tiny_transformer())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("pose_control")
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "DynamiCtrlTransformerModel"}))
    again = DynamiCtrlTransformer3DModel.from_pretrained(tmp_path)
    assert again.config["pose_control"] == "padaln"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_folder_with_a_weight_missing_is_refused(tmp_path):
    tiny_transformer(pose_control="direct_addition").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pose_control": "padaln"}))
    with pytest.raises(CheckpointError, match="8 missing keys, first .*control_norm1"):
        DynamiCtrlTransformer3DModel.from_pretrained(tmp_path)


def test_an_unknown_pose_control_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match=r"'padanl'.*padaln, .*cross_attention.*Did you mean 'padaln'"):
        tiny_transformer("1.0", in_channels=32, pose_control="padanl")


@pytest.mark.parametrize("control", POSE_CONTROLS)
def test_recomputed_activations_give_equal_gradients(control):
    gradients = []
    for recompute in (False, True):
        model = spread(tiny_transformer(pose_control=control)).train()
        if recompute:
            model.enable_gradient_checkpointing()
        model(**inputs_for(model))[0].square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_only_the_last_blocks_gate_rows_get_no_gradient():
    model = spread(tiny_transformer()).train()
    model(**inputs_for(model))[0].square().mean().backward()
    first, last = (model.transformer_blocks[i].control_norm1.linear.weight.grad for i in (0, 1))
    assert last[64:].abs().max() == 0
    assert last[:64].abs().amax(dim=1).min() > 0
    assert first.abs().amax(dim=1).min() > 0


def test_padaln_shifts_only_the_video_tokens_before_attention():
    block = spread(tiny_transformer()).transformer_blocks[0]
    seen = {}
    block.attn1.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    g = torch.Generator().manual_seed(0)
    video, pose = torch.randn(2, 6, 32, generator=g), torch.randn(2, 6, 32, generator=g)
    text, time = torch.randn(2, 5, 32, generator=g), torch.randn(2, 32, generator=g)
    _, _, passed_on = block(video, text, pose, time, None, {})
    normed_video, normed_text, *_ = block.norm1(video, text, time)
    shift, scale, gate = block.control_norm1.linear(torch.nn.functional.silu(time))[:, None].chunk(3, dim=-1)
    modulated = torch.nn.functional.layer_norm(
        pose, (32,), block.control_norm1.norm.weight, block.control_norm1.norm.bias, 1e-5
    )
    modulated = modulated * (1 + scale) + shift
    torch.testing.assert_close(seen["encoder_hidden_states"], normed_text)
    torch.testing.assert_close(seen["hidden_states"], normed_video + modulated)
    torch.testing.assert_close(passed_on, modulated + gate * modulated)


def test_the_residual_stream_keeps_the_pose_and_adds_the_gated_one():
    """Equation 4 as the paper's words and figures have it: q + gate * p, with p of equation 3."""
    block = spread(tiny_transformer(pose_control="padaln_residual")).transformer_blocks[0]
    part = block.control_norm1
    g = torch.Generator().manual_seed(0)
    video, pose, time = (torch.randn(2, *shape, generator=g) for shape in ((6, 32), (6, 32), (32,)))
    attends, passed_on = part.before_attention(video, pose, time)
    rows = torch.nn.functional.silu(time) @ part.linear.weight.T + part.linear.bias
    shift, scale, gate = (rows[:, None, first : first + 32] for first in (0, 32, 64))
    centred = pose - pose.mean(-1, keepdim=True)
    unit = centred / (pose.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    p = (unit * part.norm.weight + part.norm.bias) * (1 + scale) + shift
    torch.testing.assert_close(attends, video + p)
    torch.testing.assert_close(passed_on, pose + gate * p)


def test_a_silent_residual_stream_shows_the_pose_to_every_block():
    """What the released stream cannot: there a silent block passes nothing on."""
    seen = {}
    for control in ("padaln", "padaln_residual"):
        model = tiny_transformer(pose_control=control).eval()
        model.silence_pose()
        last = model.transformer_blocks[1]
        last.register_forward_pre_hook(lambda _, args, name=control: seen.update({name: args[2]}))
        with torch.no_grad():
            model(**inputs_for(model))
    assert seen["padaln"].abs().max() == 0
    assert seen["padaln_residual"].std() > 0.1


def test_direct_addition_adds_pose_tokens_once_at_the_input():
    model = spread(tiny_transformer("1.0", "direct_addition"))
    arguments = inputs_for(model)
    seen = {}
    model.transformer_blocks[0].register_forward_pre_hook(lambda _, args: seen.update(video=args[0], pose=args[2]))
    with torch.no_grad():
        model(**arguments)
        text, pose = arguments["encoder_hidden_states"], arguments["control_hidden_states"]
        video_tokens = model.patch_embed(text, arguments["hidden_states"])[:, 16:]
        pose_tokens = model.patch_embed(text, torch.cat([pose, pose], dim=2))[:, 16:]
    assert seen["pose"] is None
    torch.testing.assert_close(seen["video"], video_tokens + pose_tokens)


def test_a_model_with_ofs_says_when_it_is_not_given():
    model = tiny_transformer("1.5")
    with pytest.raises(ConfigError, match="pass ofs"):
        model(**{**inputs_for(model), "ofs": None})
