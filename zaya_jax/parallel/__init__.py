"""Many devices: meshes, the table of logical axes, expert and context parallelism.

`layout(experiment)` is the way in: it gives what training asks about devices. docs/scale.md.
"""

from zaya_jax.parallel.layout import ONE_DEVICE, OneDevice, OnMesh, layout, make_mesh

__all__ = ["ONE_DEVICE", "OnMesh", "OneDevice", "layout", "make_mesh"]
