"""The service on Ray Serve: the only folder of `serving` that imports Ray."""
