"""What this machine has: its SCSI devices, who uses them, and what its kernel lets through.

Reads sysfs, asks device nodes, listens to the kernel's events. Knows nothing of guests, except in
`guest`: what they are told of a device's limits.
"""
