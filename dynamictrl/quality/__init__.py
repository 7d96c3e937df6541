"""Measures of how good a clip is to learn from: of its picture (no weights, only OpenCV) and of its poses.

samples = read_samples(path)                # one decoding, shared by all measures of the picture
measure_picture(samples)                    # {"sharpness": 512.0, "brightness": 118.2, ...}
measure_motion(samples, pose)               # {"camera_share": 0.1, "body_motion": 0.2, ...}
measure_people(pose)                        # {"presence": 1.0, "person_height": 0.8, ...}
"""

from dynamictrl.quality.motion import measure_motion
from dynamictrl.quality.people import measure_people
from dynamictrl.quality.picture import measure_picture
from dynamictrl.quality.samples import Samples, read_samples

__all__ = ["Samples", "measure_motion", "measure_people", "measure_picture", "read_samples"]
