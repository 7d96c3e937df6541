"""Strangers' media: how they are fetched, looked at and limited."""
