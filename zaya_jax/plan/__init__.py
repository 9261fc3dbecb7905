"""What a run would need and send on a cluster, before there is one: `launch.py plan`.

case       an experiment on a mesh, as numbers
memory     bytes on a device, by part
traffic    collectives of a step, by purpose, kind, axis and bytes
work       FLOPs, and the roofline that predicts a step's time
hardware   devices, links and NICs
search     meshes, remat policies and batches that fit
compiled   the same of the real program, from the compiler of that cluster
scaling    bytes against devices, from compiled programs
"""

from zaya_jax.plan.case import Case, case_of
from zaya_jax.plan.hardware import Hardware, cluster
from zaya_jax.plan.prediction import Plan, plan

__all__ = ["Case", "Hardware", "Plan", "case_of", "cluster", "plan"]
