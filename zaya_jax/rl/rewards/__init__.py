"""Verifiable rewards: functions that look at a response and say how right it is, from 0 to 1.

`interface` is what a verifier gets and where its name leads, `tasks` reads what to ask from files,
`score` runs verifiers in processes of their own. A verifier of one's own is a function
`(Submission) -> float` in any module, named `module:function`.
"""
