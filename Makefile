# The only entry point: every target does its own set-up, and CI calls these targets.
#
# Needs: Linux, CPython 3.11 or newer (PYTHON=python3.13 to choose), Rust 1.88 or newer with
# rustfmt and clippy, a C linker. Everything else goes into .venv/ and target/.

PYTHON ?= $(if $(shell command -v python3.11),python3.11,python3)
# How much of the torture tests to run: `ci` (a tenth) or `full`.
FIRE ?= ci
# How long `make soak` watches.
SECONDS ?= 600
# More arguments for pytest, for example ARGS="-k fanin -x".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/.stamp-tools
EXTENSION := $(VENV)/.stamp-extension
PEERS := $(VENV)/.stamp-peers
DOCS := $(VENV)/.stamp-docs
SITE := target/site
ARM := aarch64-unknown-linux-gnu
RUST_INPUTS := Cargo.toml $(wildcard crates/*/Cargo.toml) $(shell find crates -path '*/src/*.rs')
PYTHON_CODE := $(wildcard python tests examples benches tools)

export CHRONICLE_FIRE := $(FIRE)
# So that maturin and PyO3 use this project's interpreter, whatever else is active.
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo demo-queues chaos strategies docs screenshots test test-rust test-loom \
	test-python test-asan check-arm fire soak watched bench lint wheel fmt clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- Set-up: stamps, so that each step runs again only when its inputs have changed ---

$(TOOLS): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip==26.3
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(EXTENSION): $(TOOLS) $(RUST_INPUTS)
	PIP_QUIET=1 $(BIN)/maturin develop --release
	@touch $@

$(PEERS): $(TOOLS)
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(DOCS): $(TOOLS)
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

setup: $(EXTENSION) ## Create .venv, install the tools, build the extension

# --- Use ---

demo: $(EXTENSION) ## Feed handler, strategies, router, exchange; FILE=capture.pcap.gz for real data
	$(BIN)/python examples/demo.py $(if $(FILE),--file "$(FILE)")

demo-queues: $(EXTENSION) ## Writer, readers, fan-in, kill and restart; FILE= as above
	$(BIN)/python examples/persistence.py $(if $(FILE),--file "$(FILE)")

chaos: SECONDS = 300
chaos: $(EXTENSION) ## Kill and stop a system's processes at random, then account for every order; SEED=7
	$(BIN)/python examples/chaos.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

strategies: $(EXTENSION) ## Two hundred strategies come and go: each seen once, no system call, what a message costs
	$(BIN)/python examples/strategies.py $(ARGS)

watched: SECONDS = 2
watched: $(EXTENSION) ## A hot thread with and without dashboard and metrics scrape; SECONDS=1 for less
	$(BIN)/python benches/watched.py --seconds $(SECONDS) $(ARGS)

screenshots: $(EXTENSION) ## Draw the pictures of `chronicle top` in the documentation anew
	$(BIN)/python -m tools.screenshots

bench: $(EXTENSION) $(PEERS) ## Every figure as a ratio to a floor or a peer measured in the same run
	$(BIN)/python benches/run.py $(ARGS)

docs: $(EXTENSION) $(DOCS) ## Build the documentation site into target/site; links and spelling are checked
	$(BIN)/python -m tools.site pages
	$(BIN)/codespell README.md CHANGELOG.md docs python examples
	$(BIN)/python -m tools.site build
	$(BIN)/python -m tools.site check $(SITE)
	@echo "the site is in $(SITE)/index.html"

wheel: $(TOOLS) ## Build the abi3 wheel into dist/
	$(BIN)/maturin build --release --out dist

# --- Tests ---

test: test-rust test-loom test-python ## All tests; FIRE=full for the full-size torture tests

test-rust: ## The core's unit, property and doc tests
	cargo test --package chronicle-core --features failpoints

test-loom: ## Model checks of the memory orderings
	RUSTFLAGS="--cfg loom" cargo test --profile loom --package chronicle-core \
		--target-dir target/loom --test 'loom_*'

test-python: $(EXTENSION) ## pytest; ARGS="-k name" for some
	$(BIN)/python -m pytest $(ARGS)

test-asan: ## Hostile files (two thousand mutations) and frames, fan-in, journals under AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CHRONICLE_HOSTILE_COUNT=2000 \
		cargo test --package chronicle-core --target-dir target/asan \
		--target $(shell rustc -vV | sed -n 's/^host: //p') --test hostile --test packets --test fanin --test hot_journal

check-arm: ## Types of the Rust code on 64-bit ARM, tests included (needs rustup); nothing runs
	rustup target add $(ARM)
	env -u PYO3_PYTHON PYO3_CROSS=1 PYO3_NO_PYTHON=1 cargo clippy --workspace --all-targets \
		--features chronicle-core/failpoints --target $(ARM) --target-dir target/aarch64 -- -D warnings

fire: ## All tests with the torture tests at full size (long)
	$(MAKE) test FIRE=full

soak: $(EXTENSION) ## Ten minutes of a guarded hot thread under two witnesses; SECONDS=60 for less
	$(BIN)/python benches/soak.py --seconds $(SECONDS) $(ARGS)

# --- Lint ---

lint: $(EXTENSION) ## Formats, clippy, ruff, mypy, stubtest, layers, project rules
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features chronicle-core/failpoints -- -D warnings
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/mypy $(PYTHON_CODE)
	$(BIN)/stubtest chronicle._core --mypy-config-file pyproject.toml
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/tidy

fmt: $(TOOLS) ## Format the code
	cargo fmt --all
	$(BIN)/ruff check --fix-only --quiet $(PYTHON_CODE)
	$(BIN)/ruff format $(PYTHON_CODE)

clean: ## Remove everything that was built
	rm -rf target dist $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find python tests examples benches -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	rm -f python/chronicle/*.so
