"""Marionettes: drawn, human-like figures whose keypoints, masks and captions are known exactly.

They are what the project's small models learn from, what its tests run on, and what `pipelines marionettes` writes for
a first try. Everything follows from seeds: the same seeds give the same bytes.

    clip = sample_clip(np.random.default_rng(7), num_frames=25, height=192, width=128, fps=12)
    clip.frames, clip.pose, clip.persons, clip.clothes, clip.caption, clip.attributes

A person, a motion and a place have a seed each, so one can change while the others stay:

    MarionetteScene(character_seed=1, motion_seed=2, background_seed=3).render(25, 192, 128, 12)
"""

from dynamictrl.mini.marionettes.clip import MarionetteClip, MarionetteScene, sample_clip
from dynamictrl.mini.marionettes.writer import write_marionettes

__all__ = ["MarionetteClip", "MarionetteScene", "sample_clip", "write_marionettes"]
