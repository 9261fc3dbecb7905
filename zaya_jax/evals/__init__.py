"""Evaluation: sets of tasks in the formats of the field, and what can be said of their scores.

`sets` loads tasks by format and name, the modules beside it know one format each and verify answers
to it as the published scorers do. `statistics` gives avg@k and pass@k with intervals, and
`contamination` finds evaluation prompts in training data. docs/evals.md tells more.
"""
