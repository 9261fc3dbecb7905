"""Supervised training: a pure step, the state it moves, and the loop that never loses work."""
