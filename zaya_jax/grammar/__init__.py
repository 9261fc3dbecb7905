"""Demands on a text, before and while they become a parser: how large they may be (`bounds`), the
compiler (`builder`), and a trial in a process that may die of it (`trial`).

`zaya_jax.infer.engine.grammar` binds completions with what is compiled here.
"""
