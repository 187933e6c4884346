# Each target sets up what it needs (Debian 12, root or not) and is quick the second time.
.PHONY: setup demo test bench lint docs
.DEFAULT_GOAL := test
export VSCSI_EMU_CACHE ?= $(CURDIR)/.cache

setup:
	@scripts/setup
demo: setup
	@.venv/bin/vscsi-emu demo $(ARGS)
test:
	@scripts/test $(ARGS)
bench: setup
	@.venv/bin/python bench/run.py $(ARGS)
lint:
	@scripts/lint $(ARGS)
docs:
	@scripts/docs
