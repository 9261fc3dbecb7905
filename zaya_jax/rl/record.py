"""What a stage leaves in its run directory to be read, beside `metrics.jsonl`."""

ROLLOUTS = "rollouts.jsonl"
"""One group of each logged update: prompt, responses, rewards."""
