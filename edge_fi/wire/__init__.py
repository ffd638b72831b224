"""Bytes on the wire: topics, frames, vote codes. No keys, no state."""
