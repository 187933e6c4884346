"""The CDB differential: generated CDBs, answered by our disk, QEMU's and Linux's scsi_debug."""
