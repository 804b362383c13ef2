# The front door. Everything here also runs without make: the scripts do the work.

export CARGO_TARGET_DIR ?= $(HOME)/.cache/latticedb/target
SF ?= 1
SHELL := /bin/bash
DATA ?= lattice-data
PREFIX ?= $(HOME)/.local

.PHONY: help demo test fix slt run bench bench-tpch install test-long test-crash setup release

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: ## Build, load TPC-H, query it while it changes, travel in time (SF=0.1 is quicker)
	@SF=$(SF) scripts/demo.sh

test: ## Build and run every test, as CI does
	@scripts/test.sh

setup: ## Install what building and testing needs
	@scripts/setup.sh

fix: setup ## Format, apply lint suggestions, write generated documents
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	LATTICE_BLESS=1 cargo test -q --workspace current

slt: setup ## Run SQL golden files: make slt FILE=tests/slt/suite/join/inner.slt CONFIG=mixed
	cargo build -q --locked -p lattice-slt -p lattice-pins
	$(CARGO_TARGET_DIR)/debug/slt $(if $(CONFIG),--config $(CONFIG)) $(FILE)

release: setup ## Build the server with optimisations
	cargo build --release --locked -p lattice-server

install: release ## Put the binary into PREFIX/bin (PREFIX is ~/.local)
	install -D -m 755 $(CARGO_TARGET_DIR)/release/lattice $(PREFIX)/bin/lattice
	@case ":$$PATH:" in *":$(PREFIX)/bin:"*) ;; *) echo "Add $(PREFIX)/bin to PATH to call it as lattice." ;; esac

run: release ## Run the server: make run DATA=folder
	$(CARGO_TARGET_DIR)/release/lattice serve --data $(DATA)

bench: release ## Measure against DuckDB and PostgreSQL, write docs/evidence/*.json
	@scripts/setup.sh --bench
	.venv/bin/python benches/run.py all --binary $(CARGO_TARGET_DIR)/release/lattice --scale $(SF)

bench-%: release ## Measure one bench: make bench-tpch SF=1
	@scripts/setup.sh --bench
	.venv/bin/python benches/run.py $* --binary $(CARGO_TARGET_DIR)/release/lattice --scale $(SF)

test-long: release ## TPC-H at SF 1 and 0.1 in all placements, every row of lineitem updated, 500 tables; writes evidence
	LATTICE_BIN=$(CARGO_TARGET_DIR)/release/lattice LATTICE_LONG=1 LATTICE_EVIDENCE=1 .venv/bin/python -m pytest -q -s tests/tpch tests/server/test_log.py

test-crash: release ## 200 rounds of kill -9 under concurrent writers, 200 stories of power cuts on a simulated disk
	.venv/bin/python tests/crash/campaign.py --binary $(CARGO_TARGET_DIR)/release/lattice --rounds 200 --evidence
	.venv/bin/python tests/crash/power.py --stories 200 --evidence
