# Needs make and any Python 3; brings everything else along, below this folder
# save for uv's cache of downloads.
# Written for GNU and BSD make alike, so the logic is the shell's.

UV_VERSION = 0.13.9

# Sets $uv: the one on PATH, if it runs and is new enough, or else one of our own.
# Without a home to write to, what uv downloads stays here as well. Where the Python
# of .python-version is missing, another that is new enough saves a download. Once set up, it is quiet.
FIND_UV = uv=uv; uv sync --help 2>/dev/null | grep -q no-default-groups || uv=.tools/uv; \
	unset VIRTUAL_ENV; export UV_PROJECT_ENVIRONMENT=.venv; \
	if [ -z "$$HOME" ] || [ ! -d "$$HOME" ] || [ ! -w "$$HOME" ]; then \
		export UV_CACHE_DIR="$${UV_CACHE_DIR:-$$PWD/.tools/cache}"; \
		export UV_PYTHON_INSTALL_DIR="$${UV_PYTHON_INSTALL_DIR:-$$PWD/.tools/python}"; \
	fi; \
	$$uv python find >/dev/null 2>&1 || ! $$uv python find '>=3.12' >/dev/null 2>&1 \
		|| export UV_PYTHON='>=3.12'; \
	[ ! -x .venv/bin/taxi ] || quiet=--quiet

NO_SYNC = { echo 'The packages or a Python could not be set up (see above).' \
	'uv downloads both: check the network, or install Python 3.12 or later.' >&2; exit 1; }

.PHONY: help run test campaign check bench compare clean uv runtime all

help:
	@echo 'make run     set up, then serve the API with a small fleet (ARGS="--port 9000")'
	@echo 'make test    set up, then lint, types and tests (ARGS="-k word")'
	@echo 'make campaign  set up, then the tests that take long (ARGS="-k lock_step")'
	@echo 'make check   set up, then lint and types alone'
	@echo 'make bench   set up, then measure detection and allocation (ARGS="--quick")'
	@echo 'make compare set up, then compare the strategies by speed and correctness (ARGS="--quick")'
	@echo 'make clean   remove what was set up; the bookings stay, in .taxi'

run: runtime
	@exec .venv/bin/taxi serve --demo $(ARGS)

test: check
	.venv/bin/pytest -n 2 --dist loadfile $(ARGS)

check: all
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

campaign: all
	.venv/bin/pytest -m campaign -s $(ARGS)

bench: all
	@exec .venv/bin/taxi bench $(ARGS)

compare: all
	@exec .venv/bin/taxi compare $(ARGS)

clean:
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis

# `run` leaves what `test` has installed in place, or each would undo the other.
runtime: uv
	@$(FIND_UV); $$uv sync $$quiet --frozen --no-dev --inexact || $(NO_SYNC)

all: uv
	@$(FIND_UV); $$uv sync $$quiet --frozen || $(NO_SYNC)

uv:
	@$(FIND_UV); [ $$uv = uv ] || $(MAKE) -s .tools/uv

# From / no .python-version hides a Python that is there. Debian's python3 comes
# without venv, or without pip; either will do.
.tools/uv:
	@echo 'Setting up (once): fetching uv $(UV_VERSION), then the packages in uv.lock.'
	@mkdir -p .tools; new=$$(mktemp -d "$$PWD/.tools/new-XXXXXX"); trap 'rm -rf "$$new"' EXIT; \
	pip='-m pip install --quiet --disable-pip-version-check --retries 1 uv==$(UV_VERSION)'; \
	for python in python3 python /usr/bin/python3; do \
		(cd / && { "$$python" -m venv "$$new/venv" && "$$new/venv/bin/python" $$pip \
			|| "$$python" $$pip --target "$$new/venv"; }) >"$$new/said" 2>&1 \
		&& mv "$$new/venv/bin/uv" $@ && exit 0; \
		grep -v '^ *$$' "$$new/said" | tail -n 1 >>"$$new/all"; \
	done; \
	echo "uv could not be installed: $$(sort -u "$$new/all" | tr '\n' ' ')" >&2; \
	echo 'Check the network, or put uv on PATH (https://docs.astral.sh/uv), or on Debian: apt install python3-venv' >&2; \
	exit 1
