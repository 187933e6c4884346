"""What a guest is told about a virtio-mmio instance outside its registers.

The registers say what a device is; that there is one, where, and whether its accesses to memory
snoop the guest's caches, the guest learns from its device tree or its kernel command line.
"""

from .cmdline import kernel_parameters
from .devicetree import overlay, tree
from .instance import MmioInstance, consecutive

__all__ = ["MmioInstance", "consecutive", "kernel_parameters", "overlay", "tree"]
