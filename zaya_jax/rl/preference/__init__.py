"""A model of preferences: a scalar for a response, learnt from pairs (report IV-E, behavioural RL).

    pairs    what is preferred to what, read and encoded
    reward   the scalar of a response, and the loss of a pair
    train    the loop: `launch.py reward-model`
    judge    responses scored in a stage of RL, gated by a verifier
"""
