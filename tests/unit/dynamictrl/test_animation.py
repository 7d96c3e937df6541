"""The pipeline from picture, poses and prompt to frames, on tiny random weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    ModelMixin,
)
from PIL import Image

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.conversion.base_weights import from_base
from dynamictrl.errors import CheckpointError, InputError
from dynamictrl.mini.tiny import write_tiny_model
from dynamictrl.pose_control import POSE_CONTROLS

IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    made = DynamiCtrlPipeline.from_pretrained(tiny_model)
    made.set_progress_bar_config(disable=True)
    return made


def poses(frames, height=32, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def animate(pipeline, frames=5, seed=0, **options):
    given = {
        "pose_video": poses(frames),
        "prompt": "a person",
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(seed),
    }
    return pipeline(IMAGE, **{**given, **options}).frames


@pytest.mark.parametrize("frames", [5, 9, 13, 25, 37])
def test_as_many_frames_come_out_as_poses_go_in(pipeline, frames):
    made = animate(pipeline, frames)
    assert made.shape == (1, frames, 32, 16, 3)
    assert made.std() > 0.01


@pytest.mark.parametrize("control", POSE_CONTROLS)
@pytest.mark.parametrize("base", ["1.0", "1.5"])
def test_every_structure_and_base_animates_from_its_folder(tmp_path, base, control):
    made = DynamiCtrlPipeline.from_pretrained(write_tiny_model(tmp_path, base, control))
    made.set_progress_bar_config(disable=True)
    assert animate(made, 13).shape == (1, 13, 32, 16, 3)


def test_a_seed_gives_the_same_clip_and_another_seed_another(pipeline):
    assert np.array_equal(animate(pipeline, seed=4), animate(pipeline, seed=4))
    assert not np.array_equal(animate(pipeline, seed=4), animate(pipeline, seed=5))


def test_pose_prompt_and_image_all_matter(pipeline):
    plain = animate(pipeline)
    assert not np.array_equal(plain, animate(pipeline, pose_video=poses(5, seed=9)))
    assert not np.array_equal(plain, animate(pipeline, prompt="a red wall"))
    other = Image.new("RGB", (40, 60), "white")
    options = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    assert not np.array_equal(plain, pipeline(other, poses(5), "a person", **options).frames)


def test_saving_and_loading_changes_nothing(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["dynamictrl.transformer", "DynamiCtrlTransformer3DModel"]
    assert index["pose_encoder"] == [None, None]
    again = DynamiCtrlPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(animate(pipeline), animate(again), atol=1e-5)


def test_the_rule_for_the_reference_is_saved_with_the_folder(tiny_model, tmp_path):
    made = DynamiCtrlPipeline.from_pretrained(tiny_model, image_latent_rule="unscaled")
    made.save_pretrained(tmp_path)
    again = DynamiCtrlPipeline.from_pretrained(tmp_path)
    assert again.config["image_latent_rule"] == "unscaled"


def test_a_published_folder_loads_under_its_own_class_names(tiny_model, tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(tiny_model, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "DynamiCtrlAnimationPipeline", "transformer": ["diffusers", "DynamiCtrlTransformerModel"]}
    index.pop("image_latent_rule")
    (folder / "model_index.json").write_text(json.dumps(index))
    made = DynamiCtrlPipeline.from_pretrained(folder)
    assert type(made.transformer).__name__ == "DynamiCtrlTransformer3DModel"


def test_a_stock_cogvideox_folder_lends_its_other_parts(tiny_model, tmp_path):
    """How training starts: the base's VAE, text encoder and scheduler around a transformer taken up from it."""
    loaded = DynamiCtrlPipeline.from_pretrained(tiny_model)
    config = {**loaded.transformer.config}
    config.pop("pose_control")
    parts = {name: getattr(loaded, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    stock = CogVideoXTransformer3DModel.from_config(config)
    CogVideoXImageToVideoPipeline(**parts, transformer=stock).save_pretrained(tmp_path)
    made = DynamiCtrlPipeline.from_pretrained(tmp_path, transformer=from_base(tmp_path))
    made.set_progress_bar_config(disable=True)
    assert animate(made).shape == (1, 5, 32, 16, 3)
    with pytest.raises(CheckpointError, match="from_base"):
        DynamiCtrlPipeline.from_pretrained(tmp_path)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        DynamiCtrlPipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        DynamiCtrlPipeline.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("steps", [1, 3, 6, 61])
@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
def test_any_number_of_steps_ends_at_the_clean_prediction(pipeline, steps, scheduler):
    """6 steps would stop one timestep early, 61 take a 62nd at timestep -1, if the schedulers had their way."""
    stock = pipeline.scheduler
    if scheduler == "ddim":
        pipeline.scheduler = CogVideoXDDIMScheduler.from_config(stock.config)
    seen, clean = [], []
    step = pipeline.scheduler.step

    def watch(*args, **kwargs):
        result = step(*args, **kwargs)
        clean.append(result[1])
        return result

    pipeline.scheduler.step = watch
    try:
        made = animate(
            pipeline,
            num_inference_steps=steps,
            output_type="latent",
            callback_on_step_end=lambda pipe, i, t, tensors: seen.append(int(t)) or {},
        )
    finally:
        del pipeline.scheduler.step
        pipeline.scheduler = stock
    assert len(seen) == steps
    assert min(seen) >= 0
    torch.testing.assert_close(made, clean[-1], rtol=0, atol=0)


def test_guidance_compares_texts_only(pipeline):
    """The same text in both halves must make the scale meaningless: image and pose are in both."""
    one, other = (animate(pipeline, negative_prompt="a person", guidance_scale=scale) for scale in (1.0, 7.0))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert not np.allclose(animate(pipeline, guidance_scale=1.0), animate(pipeline, guidance_scale=7.0), atol=1e-4)


def test_several_prompts_and_copies_give_one_clip_each(pipeline):
    made = animate(pipeline, prompt=["a person", "a red wall"], num_videos_per_prompt=2)
    assert made.shape == (4, 5, 32, 16, 3)
    assert len({clip.tobytes() for clip in made}) == 4
    noise = torch.randn(2, 2, 16, 4, 2, generator=torch.Generator().manual_seed(0))
    pipeline.scheduler, stock = CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config), pipeline.scheduler
    try:
        both = animate(pipeline, prompt=["a person", "a red wall"], latents=noise)
        second = animate(pipeline, prompt="a red wall", latents=noise[1:])
    finally:
        pipeline.scheduler = stock
    np.testing.assert_allclose(both[1:], second, atol=1e-4)


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_output_types(pipeline, kind):
    made = animate(pipeline, 9, output_type=kind)
    if kind == "pil":
        assert len(made[0]) == 9
        assert made[0][0].size == (16, 32)
    else:
        shapes = {"np": (1, 9, 32, 16, 3), "pt": (1, 9, 3, 32, 16), "latent": (1, 3, 16, 4, 2)}
        assert made.shape == shapes[kind]


def test_poses_may_be_arrays_tensors_or_pictures(pipeline):
    array = poses(5)
    forms = [array, torch.from_numpy(array), [Image.fromarray(frame) for frame in array]]
    clips = [animate(pipeline, pose_video=form) for form in forms]
    assert np.array_equal(clips[0], clips[1])
    assert np.array_equal(clips[0], clips[2])
    assert animate(pipeline, pose_video=poses(12), num_frames=9, height=16, width=16).shape == (1, 9, 16, 16, 3)


def test_a_callback_sees_and_changes_the_latents_and_can_stop(pipeline):
    calls = []

    def stop(pipe, i, t, tensors):
        calls.append((i, int(t), tensors["latents"].dtype))
        pipe._interrupt = True
        return {"latents": torch.zeros_like(tensors["latents"])}

    made = animate(pipeline, num_inference_steps=4, callback_on_step_end=stop, output_type="latent")
    assert calls == [(0, 999, torch.float32)]
    assert made.abs().max() == 0
    assert animate(pipeline).std() > 0  # and the next call runs on


def test_half_precision_weights_keep_the_steps_in_float32(tiny_model):
    made = DynamiCtrlPipeline.from_pretrained(tiny_model, dtype=torch.bfloat16)
    made.set_progress_bar_config(disable=True)
    kinds = set()
    clip = animate(made, callback_on_step_end=lambda p, i, t, tensors: kinds.add(tensors["latents"].dtype) or {})
    assert made.transformer.dtype == torch.bfloat16
    assert kinds == {torch.float32}
    assert np.isfinite(clip).all()


def test_a_pose_encoder_takes_the_place_of_the_shared_vae(pipeline):
    class Blocks(ModelMixin):
        """Mean colours of 8x8 pixels and 4 frames, as sixteen channels."""

        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(1))

        def forward(self, pixels):
            first, rest = pixels[:, :, :1].repeat(1, 1, 4, 1, 1), pixels[:, :, 1:]
            pooled = torch.nn.functional.avg_pool3d(torch.cat([first, rest], dim=2), (4, 8, 8))
            return self.gain * pooled.repeat(1, 6, 1, 1, 1)[:, :16].transpose(1, 2)

    plain = animate(pipeline)
    pipeline.pose_encoder = Blocks()
    try:
        assert not np.array_equal(plain, animate(pipeline))
    finally:
        pipeline.pose_encoder = None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 40}, "40 .*multiples of 16|16x40"),
        ({"num_frames": 4}, "4 frames cannot be rendered"),
        ({"num_frames": 9}, "9 frames were asked for and the clip has 5"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"generator": [torch.Generator()]}, "one generator"),
        ({"negative_prompt": ["a", "b"]}, "negative prompt"),
        ({"callback_on_step_end_tensor_inputs": ["image"]}, "image"),
        ({"latents": torch.zeros(1, 3, 16, 4, 2)}, "latents has shape"),
        ({"pose_video": np.zeros((5, 32, 16), np.uint8)}, "pose_video is uint8"),
        ({"pose_video": np.zeros((5, 32, 16, 3), np.float32)}, "pose_video is float32"),
        ({"pose_video": []}, "pose_video"),
        ({"prompt": []}, "prompt"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt is 0"),
        ({"output_type": "gif"}, "output_type is 'gif'"),
        ({"image": None}, "image"),
    ],
)
def test_what_cannot_be_rendered_is_refused_with_a_reason(pipeline, options, message):
    given = {"image": IMAGE, "pose_video": poses(5), "prompt": "a person", "num_inference_steps": 1}
    with pytest.raises(InputError, match=message):
        pipeline(**{**given, **options})
