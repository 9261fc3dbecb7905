"""The curriculum over environments whose difficulty is a number (report section IV-B).

`irt` finds, before training, the difficulty that a policy solves half of the time, by Thompson
sampling over a population of logistic students (equations 12 to 14); `calibrate` does it for many
environments. `difficulty` moves it during training, group by group (equation 11). `schedule` holds
all environments and draws those first that were sampled least. `plot` shows what came of it. All
state is explicit and JSON: docs/curriculum.md.
"""
