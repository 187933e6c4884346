"""libiscsi's SCSI conformance suite (``iscsi-test-cu``) in a guest, on our disk's sg node."""
