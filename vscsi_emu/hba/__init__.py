"""The device: where virtio meets SCSI."""

from vscsi_emu.hba.config_space import DEFAULTS as DEFAULTS
from vscsi_emu.hba.device import DEVICE_FEATURES as DEVICE_FEATURES
from vscsi_emu.hba.device import FeatureError as FeatureError
from vscsi_emu.hba.device import Hba as Hba
from vscsi_emu.hba.lun_map import Address as Address
from vscsi_emu.hba.outside import Iommu as Iommu
from vscsi_emu.hba.outside import Link as Link
from vscsi_emu.hba.removal import LunAbsentError as LunAbsentError
from vscsi_emu.hba.removal import LunBusyError as LunBusyError
from vscsi_emu.hba.removal import Removal as Removal
from vscsi_emu.hba.removal import remove as remove
