# make run   the service with its demo catalog, at http://127.0.0.1:8000
# make test  every test that needs no network, GPU or downloaded weights; a process more than cores, since tests wait
# make quick what a change is tried with: under a minute; one file: make quick ARGS=tests/unit/indexer/index/test_fold.py
# make test-servers  the service's and the catalog's tests on PostgreSQL and Redis: those installed here, or those of
#            PHALAR_TEST_DATABASE_URL (it may create databases) and PHALAR_TEST_REDIS_URL
# make lint  ruff, mypy, and the known vulnerabilities of what we install (make audit: these alone)
# make bench how fast everything is, into docs/performance.md; takes minutes, on a machine with nothing else to do
#
# make secrets  what docker-compose.yml wants before its first start
# make profile       what an import costs, and where a test spends its time: ARGS names the test
# make debug-worker  a worker under pdb; in another window `make run ARGS="--workers 0"`
# make image    the image, with its version and commit on it; VARIANT=gpu for CUDA
# make lock     pin what the image installs, by hash

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
ARGS ?=
ADVISORIES := https://pypi.org/pypi/pip/24.0/json
VARIANT ?= cpu
LOCK = $(BIN)/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate \
	--constraint constraints.txt --custom-compile-command 'make lock'
CPU_TORCH := https://download.pytorch.org/whl/cpu

# Tests start dozens of processes: each reads what another has compiled.
test quick test-servers: export PYTHONDONTWRITEBYTECODE =

.PHONY: run test quick profile debug-worker test-servers lint audit docs bench secrets image lock clean

run: .venv/run.stamp
	@$(BIN)/phalar serve --demo $(ARGS)

test: .venv/test.stamp
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

quick: .venv/test.stamp
	$(BIN)/python -m pytest --numprocesses 2 -m 'not slow' $(or $(ARGS),tests/unit)

profile: .venv/test.stamp
	$(BIN)/python -X importtime -c 'import service.api.app' 2>&1 | sort -t'|' -k2 -n | tail -20
	$(BIN)/python -m cProfile -s cumulative -m pytest --durations 20 $(or $(ARGS),tests/unit/indexer) | head -60

debug-worker: .venv/run.stamp
	PHALAR_CLAIM_AFTER_S=3600 $(BIN)/python -X dev -m pdb -m service.commands worker --slot 0

test-servers: .venv/test.stamp
	PHALAR_TEST_SERVERS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/service tests/unit/indexer/catalog/test_catalog.py tests/unit/indexer/catalog/test_servers.py tests/unit/indexer/catalog/test_schema.py $(ARGS)

lint: .venv/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory audit

# Offline it says that nothing was audited, and fails only where AUDIT=required. A proxy that knows packages but no
# vulnerabilities answers 404, which pip-audit would take for "nothing known": the first question and --strict find that out.
audit: .venv/lint.stamp
	@if $(BIN)/python -c 'import requests; requests.get("$(ADVISORIES)", timeout=10).raise_for_status()' 2>/dev/null; then \
		$(BIN)/pip-audit --strict --progress-spinner off --no-deps --disable-pip --requirement constraints.txt; \
	else \
		echo "NOT AUDITED: no vulnerability was looked for, because $(ADVISORIES) does not answer." >&2; \
		test "$(AUDIT)" != required; \
	fi

docs: .venv/run.stamp
	$(BIN)/python -m service.settings > docs/settings.md

bench: .venv/test.stamp
	$(BIN)/python -m benchmarks --page docs/performance.md $(ARGS)

secrets:
	deploy/make-secrets.sh

image:
	docker build --build-arg VARIANT=$(VARIANT) --build-arg REVISION=$$(git rev-parse HEAD) \
		--build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) --tag phalar-retrieval:$(VARIANT) .

# PyPI has only the CUDA build of torch: the CPU's lock is without it and what it alone needs.
lock: .venv/test.stamp
	$(LOCK) --extra gpu --extra postgres --extra qdrant --output-file deploy/locks/gpu.txt
	$(LOCK) --extra cpu --extra postgres --extra qdrant --output-file deploy/locks/cpu.txt \
		$$(sed -n -E 's/^(torch|triton|cuda-[^=]*|nvidia-[^=]*)==.*/--no-emit-package \1/p' deploy/locks/gpu.txt)
	grep '^torch==' constraints.txt | $(BIN)/uv pip compile --quiet - --no-deps --generate-hashes --no-annotate \
		--index-url $(CPU_TORCH) --custom-compile-command 'make lock' --output-file deploy/locks/torch-cpu.txt \
		|| { echo "$(CPU_TORCH) is not reached: torch for the CPU stays without hashes"; \
		grep '^torch==' constraints.txt > deploy/locks/torch-cpu.txt; }

clean:
	rm -rf .venv build dist *.egg-info model/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/run.stamp: .venv/python.stamp pyproject.toml setup.py $(wildcard model/*.cpp model/*.h) constraints.txt
	@echo "Installing (the first time takes a few minutes) ..."
	@$(PIP) --editable '.[cpu]'
	@touch $@

.venv/test.stamp: .venv/run.stamp
	$(PIP) --editable '.[cpu,test,deploy]'
	@touch $@

.venv/lint.stamp: .venv/test.stamp
	$(PIP) --editable '.[cpu,test,deploy,lint]'
	@touch $@
