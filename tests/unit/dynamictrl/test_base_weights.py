"""Taking a base up: what is kept, what is widened, what starts fresh."""

import json

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from dynamictrl.conversion.base_weights import from_base
from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.mini.tiny import tiny_transformer
from dynamictrl.objective import ofs_for
from dynamictrl.pose_control import POSE_CONTROLS
from dynamictrl.positions import rotary_positions


def write_base(folder, base="1.5", **changes):
    """A stock CogVideoX transformer folder, and the model that was written."""
    torch.manual_seed(0)
    config = dict(tiny_transformer(base, "padaln").config)
    config.pop("pose_control")
    model = CogVideoXTransformer3DModel.from_config({**config, **changes}).eval()
    model.save_pretrained(folder / "transformer")
    return model


def call(model, channels):
    g = torch.Generator().manual_seed(1)
    video, text = torch.randn(1, 4, 32, 12, 8, generator=g), torch.randn(1, 16, 32, generator=g)
    arguments = {
        "hidden_states": video[:, :, :channels],
        "encoder_hidden_states": text,
        "timestep": torch.tensor([500]),
        "ofs": ofs_for(model.config, "cpu"),
        "image_rotary_emb": rotary_positions(model.config, 4, 12, 8, "cpu"),
        "return_dict": False,
    }
    if "pose_control" in model.config:
        arguments["control_hidden_states"] = torch.randn(1, 4, 16, 12, 8, generator=g)
    with torch.no_grad():
        return model(**arguments)[0]


@pytest.mark.parametrize("base", ["1.0", "1.5"])
@pytest.mark.parametrize("control", ["padaln", "cross_attention", "unified_tokens"])
def test_a_silent_start_is_the_base_model(tmp_path, base, control):
    theirs = write_base(tmp_path, base)
    ours = from_base(tmp_path, control, silent=True)
    assert ours.config["pose_control"] == control
    torch.testing.assert_close(call(ours, 32), call(theirs, 32), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rotary", [True, False])
def test_a_text_to_video_base_gets_image_channels_at_zero(tmp_path, rotary):
    theirs = write_base(tmp_path, "1.0", in_channels=16, use_rotary_positional_embeddings=rotary)
    ours = from_base(tmp_path, silent=True)
    assert ours.config["in_channels"] == 32
    torch.testing.assert_close(call(ours, 32), call(theirs, 16), rtol=0, atol=1e-6)


@pytest.mark.parametrize("control", POSE_CONTROLS)
def test_a_fresh_start_has_every_weight_in_memory(tmp_path, control):
    write_base(tmp_path)
    model = from_base(tmp_path, control, dtype=torch.bfloat16)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "again")
    again = from_base(tmp_path / "again", control)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_another_structures_pose_weights_are_left_out(tmp_path):
    source = tiny_transformer(pose_control="padaln")
    source.save_pretrained(tmp_path)
    model = from_base(tmp_path, "cross_attention")
    assert torch.equal(model.proj_out.weight, source.proj_out.weight)
    assert not any("control_norm1.linear" in key for key in model.state_dict())


def test_a_base_of_other_layers_or_channels_is_refused(tmp_path):
    write_base(tmp_path)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": 1}))
    with pytest.raises(CheckpointError, match="too many"):
        from_base(tmp_path)
    tiny_transformer(pose_control="unified_tokens").save_pretrained(tmp_path / "unified")
    with pytest.raises(ConfigError, match="takes 48 channels and padaln has 32"):
        from_base(tmp_path / "unified")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        from_base(tmp_path / "empty")
