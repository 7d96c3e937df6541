"""Turning CogVideoX folders of all four shapes into DynamiCtrl folders, on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5EncoderModel

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.conversion.base_conversion import Order, convert
from dynamictrl.conversion.base_weights import Source, blueprint, from_base
from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.mini.tiny import cogvideox_scheduler, tiny_transformer, tiny_vae
from dynamictrl.objective import ofs_for
from dynamictrl.pose_control import POSE_CONTROLS
from dynamictrl.positions import rotary_positions
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

SINCOS = {"use_rotary_positional_embeddings": False}
BASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "2b": ("1.0", {**SINCOS, "in_channels": 16}, 3.0),
    "5b": ("1.0", {"in_channels": 16}, 1.0),
    "5b-i2v": ("1.0", {"use_learned_positional_embeddings": True}, 1.0),
    "1.5-5b-i2v": ("1.5", {}, 1.0),
}
"""Name: (shape, what differs from it, the scheduler's shift of the signal-to-noise ratio)."""

PADALN_KEYS = {"linear.weight": (96, 32), "linear.bias": (96,), "norm.weight": (32,), "norm.bias": (32,)}
"""Shapes for width 32 and time width 32: (3D, E), (3D), (D), (D)."""


@pytest.fixture(scope="module")
def bases(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stock CogVideoX pipeline folder of each shape."""
    root = tmp_path_factory.mktemp("bases")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(tiny_model / "text_encoder")
    for name, (shape, changes, shift) in BASES.items():
        torch.manual_seed(len(name))
        config = dict(tiny_transformer(shape, **{**changes, "in_channels": 32}).config)  # pyright: ignore[reportArgumentType]
        config.pop("pose_control")
        stock = CogVideoXTransformer3DModel.from_config({**config, **changes})
        for parameter in stock.parameters():
            parameter.data = torch.randn_like(parameter) * 0.1
        kind = CogVideoXPipeline if stock.config["in_channels"] == 16 else CogVideoXImageToVideoPipeline
        parts = {"tokenizer": tokenizer, "text_encoder": encoder, "vae": tiny_vae(shape)}  # pyright: ignore[reportArgumentType]
        made = kind(**parts, transformer=stock, scheduler=cogvideox_scheduler(shift))
        made.save_pretrained(root / name, max_shard_size="60KB" if name == "1.5-5b-i2v" else "10GB")
    return {name: root / name for name in BASES}


def denoised(model: Any, channels: int, pose: float = 0.0) -> torch.Tensor:
    """What a transformer, ours or diffusers', predicts on fixed inputs."""
    g = torch.Generator().manual_seed(1)
    video, text = torch.randn(1, 4, 32, 12, 8, generator=g), torch.randn(1, 16, 32, generator=g)
    arguments: dict[str, Any] = {
        "hidden_states": video[:, :, :channels],
        "encoder_hidden_states": text,
        "timestep": torch.tensor([500]),
        "ofs": ofs_for(model.config, "cpu"),
        "image_rotary_emb": rotary_positions(model.config, 4, 12, 8, "cpu"),
    }
    if isinstance(model, DynamiCtrlTransformer3DModel):
        arguments["control_hidden_states"] = torch.randn(1, 4, 16, 12, 8, generator=g) + pose
    with torch.no_grad():
        return model.eval()(**arguments, return_dict=False)[0]


@pytest.mark.parametrize("control", ["padaln", "padaln_residual", "cross_attention", "unified_tokens"])
@pytest.mark.parametrize("name", BASES)
def test_a_silent_conversion_predicts_what_the_stock_base_predicts(bases, tmp_path: Path, name: str, control: str):
    stock = CogVideoXTransformer3DModel.from_pretrained(bases[name] / "transformer")
    convert(Order(base=str(bases[name]), pose_control=control, silent_pose=True), tmp_path / "out")
    ours = DynamiCtrlTransformer3DModel.from_pretrained(tmp_path / "out" / "transformer")
    wanted = denoised(stock, stock.config["in_channels"])
    torch.testing.assert_close(denoised(ours, 32), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(denoised(ours, 32, pose=3.0), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BASES)
def test_keys_and_shapes_are_the_bases_and_padalns(bases, tmp_path: Path, name: str):
    before = CogVideoXTransformer3DModel.from_pretrained(bases[name] / "transformer").state_dict()
    done = convert(Order(base=str(bases[name])), tmp_path / "out")
    after = DynamiCtrlTransformer3DModel.from_pretrained(tmp_path / "out" / "transformer").state_dict()

    new = {
        f"transformer_blocks.{block}.control_norm1.{part}": shape
        for block in range(2)
        for part, shape in PADALN_KEYS.items()
    }
    assert {key: tuple(after[key].shape) for key in after.keys() - before.keys()} == new
    assert set(done.fresh) == set(new)
    assert before.keys() <= after.keys()
    for key, value in before.items():
        narrow = after[key]
        if key == "patch_embed.proj.weight" and name in ("2b", "5b"):
            assert narrow[:, 16:].abs().max() == 0
            narrow = narrow[:, :16]
        assert torch.equal(narrow, value), key
    # As released: LayerNorm at one and zero, Linear at torch's own spread of 1 / sqrt(inputs).
    weight = after["transformer_blocks.1.control_norm1.linear.weight"]
    assert after["transformer_blocks.1.control_norm1.norm.weight"].eq(1).all()
    assert weight.abs().max() <= 32**-0.5
    assert weight.std() == pytest.approx(32**-0.5 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("name", BASES)
def test_the_converted_folder_animates_with_the_bases_other_parts(bases, tmp_path: Path, name: str):
    import numpy as np
    from PIL import Image

    folder = tmp_path / "out"
    convert(Order(base=str(bases[name])), folder)
    pipeline = DynamiCtrlPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    poses = np.random.default_rng(0).integers(0, 255, (13, 96, 64, 3), dtype=np.uint8)
    made = pipeline(Image.fromarray(poses[0]), poses, "a person", num_inference_steps=1, output_type="np").frames
    assert made.shape == (1, 13, 96, 64, 3)
    shared = [path for part in ("vae", "text_encoder", "tokenizer") for path in (bases[name] / part).iterdir()]
    assert len(shared) >= 6
    assert all((folder / path.relative_to(bases[name])).read_bytes() == path.read_bytes() for path in shared)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "CogVideoXDPMScheduler"
    assert scheduler["timestep_spacing"] == "trailing"
    assert scheduler["snr_shift_scale"] == BASES[name][2]


@pytest.mark.parametrize("control", POSE_CONTROLS)
def test_on_disk_and_in_memory_give_the_same_weights(bases, tmp_path: Path, control: str):
    convert(Order(base=str(bases["5b"]), pose_control=control, seed=7), tmp_path / "out")
    torch.manual_seed(7)
    there = from_base(bases["5b"], control).state_dict()
    here = from_base(tmp_path / "out", control).state_dict()
    assert there.keys() == here.keys()
    assert all(torch.equal(there[key], here[key]) for key in there)


def test_shards_that_stay_as_they_are_are_linked_and_the_pose_gets_its_own(bases, tmp_path: Path):
    source = bases["1.5-5b-i2v"] / "transformer"
    shards = sorted(source.glob("*-of-*.safetensors"))
    assert len(shards) > 2
    convert(Order(base=str(bases["1.5-5b-i2v"])), tmp_path / "linked")
    convert(Order(base=str(bases["1.5-5b-i2v"])), tmp_path / "copied", link=False)
    for shard in shards:
        assert (tmp_path / "linked" / "transformer" / shard.name).samefile(shard)
        copied = tmp_path / "copied" / "transformer" / shard.name
        assert not copied.samefile(shard)
        assert copied.read_bytes() == shard.read_bytes()
    index = json.loads(
        (tmp_path / "linked" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    pose = {key for key, file in index["weight_map"].items() if file == "diffusion_pytorch_model-pose.safetensors"}
    assert len(pose) == 8
    assert all(".control_norm1." in key for key in pose)


def test_weights_are_cast_when_asked_and_else_keep_their_type(bases, tmp_path: Path):
    convert(Order(base=str(bases["2b"]), dtype=torch.bfloat16), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    convert(Order(base=str(tmp_path / "out"), fresh_pose=True), tmp_path / "again")
    again = load_file(tmp_path / "again" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in again.values()} == {torch.bfloat16}


def test_a_second_call_changes_nothing_and_another_order_is_refused(bases, tmp_path: Path):
    out, order = tmp_path / "out", Order(base=str(bases["2b"]))
    (tmp_path / ".out.tmp").mkdir()  # what a killed call leaves
    (tmp_path / ".out.tmp" / "half").write_text("")
    convert(order, out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    convert(order, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ConfigError, match="choose another --out"):
        convert(Order(base=str(bases["2b"]), silent_pose=True), out)
    namesake = tmp_path / "elsewhere" / "2b"
    shutil.copytree(bases["2b"], namesake)
    convert(Order(base=str(namesake)), out)  # the same weights in another place
    file = namesake / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ConfigError, match="choose another --out"):
        convert(Order(base=str(namesake)), out)


def published(base: Path, folder: Path) -> tuple[Path, DynamiCtrlTransformer3DModel]:
    """A transformer folder as the released masked models lie: files at the root, under their class name."""
    torch.manual_seed(5)
    model = from_base(base)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("pose_control")
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "DynamiCtrlTransformerModel"}))
    return folder, model


def test_a_published_transformer_goes_into_its_bases_folder(bases, tmp_path: Path):
    masked, model = published(bases["1.5-5b-i2v"], tmp_path / "Mask_B01")
    done = convert(Order(base=str(bases["1.5-5b-i2v"]), transformer=str(masked)), tmp_path / "out")
    assert done.fresh == done.left_out == ()
    assert done.parameters_before == done.parameters_after
    from_disk = DynamiCtrlPipeline.from_pretrained(tmp_path / "out").transformer
    lent = DynamiCtrlPipeline.from_pretrained(bases["1.5-5b-i2v"], transformer=masked).transformer
    for other in (from_disk, lent):
        assert type(other).__name__ == "DynamiCtrlTransformer3DModel"
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


def test_a_published_transformer_that_lacks_a_key_is_refused(bases, tmp_path: Path):
    masked, _ = published(bases["1.5-5b-i2v"], tmp_path / "Mask_C01")
    from safetensors.torch import save_file

    file = masked / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["transformer_blocks.1.control_norm1.norm.bias"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="1 tensors lacking .*norm.bias"):
        convert(Order(base=str(bases["1.5-5b-i2v"]), transformer=str(masked)), tmp_path / "out")
    with pytest.raises(CheckpointError, match="1 missing keys"):
        DynamiCtrlPipeline.from_pretrained(bases["1.5-5b-i2v"], transformer=str(masked))
    shutil.copytree(bases["2b"], tmp_path / "other")
    text = tmp_path / "other" / "text_encoder" / "config.json"
    text.write_text(json.dumps({**json.loads(text.read_text()), "d_model": 64}))
    with pytest.raises(CheckpointError, match="does not fit .*text width 32"):
        convert(Order(base=str(tmp_path / "other")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def change(folder: Path, **values: Any) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: change(f, _class_name="FluxTransformer2DModel"), "holds a FluxTransformer2DModel, which is no base"),
        (lambda f: change(f, in_channels=24), "takes 24 input channels; a base takes 16 .* or 32"),
        (lambda f: change(f, num_layers=3), "is no base of this model: 2. tensors lacking"),
        (lambda f: change(f, num_layers=1), "too many"),
        (lambda f: change(f, num_attention_heads=3), "misshapen"),
        (lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").unlink(), "lacks diffusion_pytorch"),
        (lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99), "as weights"),
        (lambda f: shutil.rmtree(f / "vae"), r"no whole base: it lacks vae/config\.json, vae/\*\.safetensors"),
        (lambda f: (f / "text_encoder" / "model.safetensors").unlink(), r"text_encoder/\*\.safetensors"),
        (lambda f: (f / "model_index.json").unlink(), r"lacks model_index\.json"),
        (lambda f: (f / "transformer" / "config.json").unlink(), r"no config\.json"),
    ],
)
def test_what_is_no_base_is_refused_and_leaves_nothing_behind(bases, tmp_path: Path, damage, said: str):
    folder = tmp_path / "base"
    shutil.copytree(bases["2b"], folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=said):
        convert(Order(base=str(folder)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_settings_that_cannot_be_are_refused(bases, tmp_path: Path):
    with pytest.raises(ConfigError, match="direct_addition has no weights"):
        convert(Order(base=str(bases["5b"]), pose_control="direct_addition", silent_pose=True), tmp_path / "out")
    convert(Order(base=str(bases["5b"]), pose_control="unified_tokens"), tmp_path / "unified")
    with pytest.raises(ConfigError, match="takes 48 channels and padaln has 32"):
        convert(Order(base=str(tmp_path / "unified")), tmp_path / "out")


FULL = {"text_embed_dim": 4096, "patch_bias": True}
FIVE_B = {**FULL, "num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True}
FULL_SIZES: dict[str, tuple[dict[str, Any], int, int, int]] = {
    # Name: config, tensors new, parameters of the base as it lies, parameters after.
    "2b": ({**FULL, "num_layers": 30, "num_attention_heads": 30, "in_channels": 16},
           120, 1_693_906_752 - 1920 * 16 * 4, 1_782_668_352),
    "5b": ({**FIVE_B, "in_channels": 16}, 168, 5_570_479_680 - 3072 * 16 * 4, 5_769_305_664),
    "5b-i2v": (
        {**FIVE_B, "in_channels": 32, "use_learned_positional_embeddings": True}, 168, 5_570_479_680, 5_769_305_664,
    ),
    "1.5-5b-i2v": (
        {**FIVE_B, "in_channels": 32, "patch_size_t": 2, "patch_bias": False, "ofs_embed_dim": 512,
         "sample_height": 300, "sample_width": 300, "sample_frames": 81},
        168, 5_571_594_880, 5_770_420_864,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZES)
def test_full_size_bases_come_to_the_published_sizes(name: str):
    config, new, before, after = FULL_SIZES[name]
    with torch.device("meta"):
        stock = CogVideoXTransformer3DModel(**config)
    shapes = {key: tuple(value.shape) for key, value in stock.state_dict().items()}
    homes, dtypes = dict.fromkeys(shapes, Path(name)), dict.fromkeys(shapes, torch.bfloat16)
    source = Source(Path(name), dict(stock.config), (), homes, shapes, dtypes)
    plan = blueprint(source, "padaln")
    assert len(plan.fresh) == new
    assert (plan.parameters_before, plan.parameters_after) == (before, after)
    assert len(plan.taken) == len(shapes)
