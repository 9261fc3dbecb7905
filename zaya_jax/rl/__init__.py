"""Reinforcement learning from verifiable rewards (report section IV), one idea a file.

On the host, in numpy, per group of rollouts of one prompt: `rewards` score, `compressibility` and
`gibberish` look out for broken text, `dynamic_sampling` drops groups that teach nothing,
`length_reward` and `advantages` turn scores into advantages. On the device, in jax, per token:
`dppo` masks, `aggregation` weighs, `loss` combines. Between the two: `rollout` is what generation
hands over, `buffer` holds it, `packing` makes rows of it. docs/rl.md tells where each equation is.
"""
