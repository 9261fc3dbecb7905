"""A plan: memory, traffic, work and time of one case on one kind of cluster."""

from __future__ import annotations

import dataclasses
from typing import Any

from zaya_jax.aot.targets import target_of
from zaya_jax.config import Experiment
from zaya_jax.plan import memory, traffic
from zaya_jax.plan.case import Case, case_of
from zaya_jax.plan.hardware import Hardware
from zaya_jax.plan.work import Time, Work, time_of, work


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is predicted.

    Attributes:
      case, hardware: of what, on what.
      memory: bytes on a device.
      messages: collectives of a step.
      work: of a device in a step.
      time: of a step.
    """

    case: Case
    hardware: Hardware
    memory: memory.Memory
    messages: tuple[traffic.Message, ...]
    work: Work
    time: Time

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.hardware.limit

    @property
    def tokens_per_second(self) -> float:
        """Of all devices."""
        return self.case.tokens_a_step / self.time.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs over what the devices' matrix units could do, as `train` reports it."""
        peak = self.hardware.matrix.get("bfloat16", self.hardware.matrix["float32"])
        return self.work.model_flops / self.time.seconds / peak

    @property
    def sent(self) -> float:
        """Bytes that leave a device in a step."""
        return sum(message.sent(self.case.sizes) for message in self.messages)


def plan(experiment: Experiment, hardware: Hardware) -> Plan:
    """Predicts; a pure function, which takes a second for the first case of a model.

    Raises:
      UserError: the experiment's mesh does not fit it.
    """
    case = case_of(experiment, target_of(hardware.target).platform)
    messages = tuple(traffic.messages(case))
    found = work(case)
    return Plan(
        case=case,
        hardware=hardware,
        memory=memory.memory(case),
        messages=messages,
        work=found,
        time=time_of(case, hardware, found, list(messages)),
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """All of a plan as plain data; bytes, FLOPs and seconds, unrounded."""
    case, found = plan.case, plan.memory
    model = case.experiment.model
    return {
        "experiment": case.experiment.name,
        "mesh": dict(case.sizes),
        "devices": case.devices,
        "remat": model.remat,
        "rows": case.rows,
        "row_tokens": case.length,
        "tokens": case.tokens,
        "microbatches": case.microbatches,
        "tokens_a_step": case.tokens_a_step,
        "hardware": dataclasses.asdict(plan.hardware),
        "fits": plan.fits,
        "memory": {
            "limit": plan.hardware.limit,
            "total": found.total,
            "arguments": found.arguments,
            "temporaries": found.temporaries,
            "rest": dict(found.rest),
            "gradient": dict(found.gradient),
            "scatter": dict(found.scatter),
            "update": dict(found.update),
        },
        "collectives": [
            {**dataclasses.asdict(message), "sent": message.sent(case.sizes)}
            for message in plan.messages
        ],
        "work": dataclasses.asdict(plan.work),
        "time": dataclasses.asdict(plan.time),
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
    }
