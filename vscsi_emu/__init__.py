"""vscsi-emu: a virtio-scsi HBA in user space."""
