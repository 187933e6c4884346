"""Logical units that are devices of the host: their commands pass, in the data plane, as far as the
filter (`scsi.passing`) lets them. What is answered here is what a guest must see otherwise than
the host does: the LUN inventory, the limits, and which commands there are.
"""

from vscsi_emu.passthrough.unit import PassthroughUnit

__all__ = ["PassthroughUnit"]
