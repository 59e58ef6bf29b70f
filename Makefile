# make install | train | test | lint | bench: each works first on a bare clone. Options go in ARGS: make train ARGS="--seed 1"

# The first Python that is new enough; `python3` first, since on a GPU machine that is the one that has torch.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv/bin/python
# One process for each GPU; two on a CPU.
NPROC ?= $(shell $(VENV) -c 'import torch; print(torch.cuda.device_count() or 2)')
# Of `make test`, for two cores: tests of several ranks often wait.
WORKERS ?= 4
export OMP_NUM_THREADS ?= 1
# Tests start a hundred processes of this project; where this is set, each would compile its files again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install train test lint bench
install: .venv/installed

# A torch that is there already fits the machine's GPU driver: it and the packages around it are used as they are.
.venv/installed: requirements.lock
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer on the PATH; name one: make install PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) .venv
	$(VENV) -c 'import torch' 2>/dev/null || $(VENV) -m pip install --quiet $$(grep '^torch==' requirements.lock)
	$(VENV) -c "$$PRINT_PINS" > .venv/pins.txt
	$(VENV) -m pip install --quiet -r .venv/pins.txt
	touch $@

# The lines of the lock file that this machine's own packages leave open.
define PRINT_PINS
import importlib.metadata as metadata, re, sys
name_of = lambda text: re.match('[a-z0-9-]+', text.lower().replace('_', '-').replace('.', '-')).group()
there = {name_of(one.name) for one in metadata.distributions() if not one.locate_file('').is_relative_to(sys.prefix)}
# A torch for GPUs brings the one triton it works with.
there |= {name_of(one) for one in metadata.requires('torch') if one.startswith('triton')}
print(*(line for line in open('requirements.lock') if line[0] not in '#\n' and name_of(line) not in there), sep='')
endef
export PRINT_PINS

train: install
	$(VENV) -m torch.distributed.run --standalone --nproc_per_node=$(NPROC) train.py $(ARGS)

# What only tests use. Every version is in the file: nothing is left to look for.
.venv/tested: .venv/installed tests/requirements.lock
	$(VENV) -m pip install --quiet --no-deps --no-compile -r tests/requirements.lock
	touch $@

test: install .venv/tested
	$(VENV) -m pytest -n $(WORKERS) $(ARGS)

lint: install
	$(VENV) -m ruff check $(ARGS)
	$(VENV) -m mypy

bench: install
	$(VENV) -m benchmarks.toy
