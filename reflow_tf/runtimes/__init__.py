"""Bytes and a batch become outputs."""
