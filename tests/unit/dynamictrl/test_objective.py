"""The loss against diffusers' algebra, and the arithmetic at the smallest timesteps."""

import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from dynamictrl import objective
from dynamictrl.errors import ConfigError
from dynamictrl.mini.tiny import cogvideox_scheduler, tiny_transformer


@pytest.fixture(scope="module")
def schedule():
    return objective.Schedule.from_scheduler(cogvideox_scheduler())


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_loss_is_diffusers_weighted_loss_on_the_clean_latents(shift):
    scheduler = cogvideox_scheduler(shift)
    schedule = objective.Schedule.from_scheduler(scheduler)
    clean, noise, predicted = (draw(5, 3, 16, 4, 4, seed=s, dtype=torch.float64) for s in range(3))
    timesteps = torch.tensor([0, 1, 40, 500, 999])
    noisy = scheduler.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(objective.add_noise(schedule, clean, noise, timesteps), noisy, rtol=1e-12, atol=1e-12)

    predicted_clean = scheduler.get_velocity(predicted, noisy, timesteps)
    weight = 1 / (1 - scheduler.alphas_cumprod[timesteps]).view(-1, 1, 1, 1, 1)
    theirs = (weight * (predicted_clean - clean) ** 2).flatten(1).mean(1)
    ours = objective.velocity_loss(predicted, objective.velocity(schedule, clean, noise, timesteps))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


@pytest.mark.parametrize("t", range(6))
def test_bfloat16_latents_keep_their_noise_at_the_smallest_timesteps(schedule, t):
    clean, noise = (draw(1, 2, 16, 8, 8, seed=s, dtype=torch.bfloat16) for s in range(2))
    timesteps = torch.tensor([t])
    noisy = objective.add_noise(schedule, clean, noise, timesteps)
    assert noisy.dtype == torch.float32
    added = (noisy - schedule.signal[t].float() * clean.float()) / noise.float()
    torch.testing.assert_close(added.mean(), schedule.noise[t].float(), rtol=1e-3, atol=0)
    assert schedule.noise[t] > 0.02


def test_the_schedule_ends_in_pure_noise(schedule):
    assert schedule.num_timesteps == 1000
    assert schedule.signal.dtype == torch.float64
    assert schedule.signal[999] == 0
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(1000, dtype=torch.float64))


def test_a_scheduler_of_another_prediction_is_refused():
    with pytest.raises(ConfigError, match="'epsilon'"):
        objective.Schedule.from_scheduler(CogVideoXDPMScheduler())


@pytest.mark.parametrize(("base", "frames"), [("1.0", 3), ("1.5", 3), ("1.5", 4)])
def test_the_loss_of_a_model_is_one_float32_number_a_sample(schedule, base, frames):
    model = tiny_transformer(base)
    video, image, pose = (draw(2, frames, 16, 4, 4, seed=s) for s in range(3))
    timesteps = torch.tensor([3, 900])
    noise = objective.noise_for(video, model.config["patch_size_t"], torch.Generator().manual_seed(0))
    loss = objective.training_loss(model, schedule, video, image, pose, draw(2, 16, 32), timesteps, noise)
    assert loss.shape == (2,)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    alone = objective.training_loss(
        model, schedule, video[1:], image[1:], pose[1:], draw(2, 16, 32)[1:], timesteps[1:], noise[1:]
    )
    torch.testing.assert_close(loss[1:], alone)


def test_a_perfect_prediction_has_no_loss(schedule):
    class Oracle(torch.nn.Module):
        """Answers the velocity itself: the loss must be zero if noise, target and timesteps agree."""

        def __init__(self):
            super().__init__()
            self.config = tiny_transformer("1.0").config
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, hidden_states, timestep, **_):
            signal, sigma = schedule.at(timestep, hidden_states)
            noisy = hidden_states[:, :, :16]
            return ((signal * noisy - video) / sigma,)

    video, noise = draw(2, 3, 16, 4, 4), draw(2, 3, 16, 4, 4, seed=1)
    loss = objective.training_loss(
        Oracle(), schedule, video, video, video, draw(2, 16, 32), torch.tensor([300, 999]), noise
    )
    assert loss.max() < 1e-8


def test_noise_of_the_unpadded_shape_is_refused(schedule):
    video = draw(1, 3, 16, 4, 4)
    with pytest.raises(ConfigError, match="noise_for"):
        objective.training_loss(
            tiny_transformer("1.5"), schedule, video, video, video, draw(1, 16, 32), torch.tensor([3]), video
        )


def test_the_model_is_found_inside_its_wrappers():
    model = tiny_transformer("1.0")
    assert objective.unwrap(torch.nn.DataParallel(model)) is model
    assert objective.unwrap(model) is model
