"""Adapters: each translates between effects and one library or file format."""
