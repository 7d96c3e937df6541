"""Telling a client's server that a job has ended: written with the end itself, delivered beside the rendering."""
