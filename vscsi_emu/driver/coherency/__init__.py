"""Memory whose CPU and device do not see the same, and drivers that must cope.

Put between a driver and a real device, it reproduces what a wrong description of the platform
does, and names what a driver forgets: a sync, a barrier, a mapping.
"""

from .api import DmaApi
from .bus import CoherencyBus, Kernel, Reality
from .faults import CoherencyError, Fault, FaultKind, FaultLog
from .iommu import Iommu, IommuFault, Permission
from .memory import CoherencyModel

__all__ = [
    "CoherencyBus",
    "CoherencyError",
    "CoherencyModel",
    "DmaApi",
    "Fault",
    "FaultKind",
    "FaultLog",
    "Iommu",
    "IommuFault",
    "Kernel",
    "Permission",
    "Reality",
]
