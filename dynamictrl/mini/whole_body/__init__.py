"""The mini family's person detector and whole-body pose model, with YOLOX's and DWPose's signatures.

Workers draw figures without a place (`people`) and places without people (`backdrops`); the training device sets the
one before the other, clothes, lights and damages the picture (`compose`, `augment`). So a drawn figure is never shown
the same way twice, and the GPU does not wait for the pencil.
"""
