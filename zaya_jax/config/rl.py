"""The fields of a reinforcement-learning stage; docs/rl.md has the equations behind them."""

from __future__ import annotations

import dataclasses

ADVANTAGES = ("maxrl", "grpo")
TRUNCATIONS = ("G-1", "G")
CENTRES = ("shaped", "task")
ROLLOUTS = ("inline", "process", "ray")
RULES = ("report", "printed", "rlve", "fixed")


@dataclasses.dataclass(frozen=True)
class Loss:
    """The policy loss (report IV-B)."""

    advantage: str = "maxrl"  # maxrl | grpo
    truncation: str = "G-1"  # of maxrl: G-1 | G
    centre: str = "shaped"  # of maxrl with a length reward: shaped | task
    trust_region: bool = True  # DPPO's mask
    low: float = 0.1  # its threshold for tokens that became less likely,
    high: float = 0.1  # and more likely
    symmetric: bool = False  # mask whatever is outside, whichever way it is to go
    ratio_cap: float = 20.0  # of the importance weights
    replay: bool = True  # routers choose what they chose when the tokens were sampled


@dataclasses.dataclass(frozen=True)
class Length:
    """The length reward (report eq 8 to 10)."""

    coefficient: float = 0.0  # 0: none; the report ramps it to 1
    tolerance: int = 100  # tokens by which a right answer may be longer than the shortest
    accuracy_tolerance: float = 0.05  # by which a solve rate may be below the best of its source


@dataclasses.dataclass(frozen=True)
class Preference:
    """A model of rewards, learnt from pairs: `launch.py reward-model`."""

    pairs: str = ""  # JSONL of {prompt, chosen, rejected}, or package.module:function
    heldout_fraction: float = 0.05  # of the prompts


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """How the difficulty of graded sources of `rl.tasks` moves; see docs/curriculum.md."""

    rule: str = "report"  # report | printed | rlve | fixed
    start: int = 0  # difficulty that every environment begins at; but with
    rounds: int = 0  # of calibration (report eq 12 to 14), each where it is solved half of the time


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How held-out tasks are answered; see docs/rsa.md."""

    population: int = 0  # N rollouts of Markovian RSA, whose majority counts; 0: one greedy answer
    candidates: int = 1  # C, tails that a prompt shows
    rounds: int = 0  # T; 0 is a vote of N
    tail: int = 4096  # tau, tokens of a tail
    budget: int = 0  # tokens of a rollout; 0: rl.max_tokens
    template: str | None = None  # of aggregation prompts, a Jinja file; None for ours


@dataclasses.dataclass(frozen=True)
class RL:
    """What is asked, how answers are sampled, and how they are learnt from."""

    # ((source, weight), ...): reasoning_gym:NAME, reasoning_gym:NAME?{"json": "parameters"}, a
    # JSONL file of {prompt, answer, verifier}, package.module:function that gives tasks; or graded,
    # by the curriculum: rlve:NAME, and reasoning_gym with a parameter such as "2+d"
    tasks: tuple[tuple[str, float], ...] = ()
    curriculum: Curriculum = Curriculum()
    heldout: int = 128  # tasks to score on, none of which is trained on
    scoring: Scoring = Scoring()
    prompts: int = 128  # groups of an update
    group: int = 16  # rollouts of a prompt
    max_prompt: int = 20_480  # tokens; longer ones are passed over, and counted
    max_tokens: int = 81_920  # of a rollout
    min_p: float = 0.0  # of sampling, whose temperature is 1
    concurrent: int = 256  # rollouts under way at once
    pool_gb: float = 1.0  # of an engine: keys, values and states of what is under way
    rollout: str = "inline"  # inline | process | ray: where the engines are
    workers: int = 1  # processes, or Ray actors; `concurrent` is divided among them
    overlap: bool = False  # generate the next batch while this one is learnt from
    swap_every: int = 2  # updates after which generation goes on with the new weights
    dynamic_sampling: bool = True  # learn only from groups that are neither all right nor all wrong
    staleness: int = 2  # most updates between a token and the policy that learns from it
    buffer: int = 2  # batches that may wait to be learnt from
    microbatch_tokens: int = 131_072  # positions of a row; rollouts are packed into rows
    microbatch_rows: int = 1
    verifier_seconds: float = 10.0
    verifier_processes: int = 2  # of each verifier
    # The run of a reward model: its score is the reward of what the verifier passes, 0 of the rest
    reward_model: str | None = None
    loss: Loss = Loss()
    length: Length = Length()
