"""Bytes that outlive a job: uploads, clips, where they lie, what is signed into them."""
