"""Code environments: tasks about programs, built from problem seeds, judged in the sandbox.

`seeds` says what a seed is, `generate` makes some without end, `mutate` plants bugs. `standard`,
`codeio`, `codearc` and `falsification` make tasks of them and verify answers; `build` makes and
writes those of many seeds. docs/sandbox.md tells more.
"""
