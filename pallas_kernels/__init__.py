"""The compute of ZAYA, one folder an op; imports nothing of `zaya_jax` (see `dispatch`)."""
