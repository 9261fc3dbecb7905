"""A small world for small models, in which all stages of the cascade are real.

    functions   code: functions of two numbers, run in the sandbox
    manners     behaviour: greetings that keep IFEval's instructions, some of them polite

Beside them stand sums (`zaya_jax.rl.demonstrations`) and sums that take several rollouts
(`zaya_jax.rl.long_sums`). Each gives demonstrations, which are right or good only now and then, and
tasks; `launch.py cascade` takes a model through them.
"""
