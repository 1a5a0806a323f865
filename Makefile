# The data centre on this machine, its tests, and what is generated. `make help` lists the targets.

# What is slow to build is kept outside the checkout, so that a fresh clone is quick, too.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/conme
export CARGO_TARGET_DIR ?= $(CACHE)/target
BIN := $(CARGO_TARGET_DIR)/debug
TESTBED := $(BIN)/conme-testbed
NAME ?= demo

.DEFAULT_GOAL := help
.PHONY: help demo demo-down kubeconfig build test test-unit test-stories test-story soak isolation-report bench-operator bench-mover mover check manifests

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: build ## From nothing to a running data centre with the 22 members (first time: up to 25 minutes)
	@$(TESTBED) --name $(NAME) demo

demo-down: ## Stop the demo and remove its data; nothing is left running
	@if [ -x $(TESTBED) ]; then $(TESTBED) --name $(NAME) down --purge; else echo "nothing was built, so nothing runs"; fi

kubeconfig: ## Print the path of the demo's kubeconfig: export KUBECONFIG=$(make -s kubeconfig)
	@$(TESTBED) --name $(NAME) kubeconfig

build:
	@echo "building the Rust programs (first time: about 5 minutes)"
	@cargo build --locked -p conme-operator -p conme-testbed -p conme-kubectl

test: test-unit test-stories ## All tests: pure ones, real databases, stories on a real control plane

test-unit: build
	@echo "unit, property and golden tests; the drivers against real databases; the local data centre itself"
	@cargo test --locked --workspace --exclude conme-stories

test-stories: build
	@echo "stories on a real control plane"
	@cargo test --locked -p conme-stories --no-run
	@$(TESTBED) run --nodes 8 --postgres 1 --mariadb 1 -- sh -c '$(TESTBED) install && tests/run.sh'

test-story: build ## One story: make test-story STORY=drift
	@$(TESTBED) run --nodes 8 --postgres 1 --mariadb 1 -- sh -c '$(TESTBED) install && cargo test --locked -p conme-stories --test $(STORY) -- --nocapture'

isolation-report: build ## Write docs/security/isolation.md from the answers of a real API server
	@$(TESTBED) run --nodes 2 --postgres 1 -- sh -c '$(TESTBED) install && CONME_WRITE_REPORT=1 cargo test --locked -p conme-stories --test tenants every_check'

soak: build ## Faults, isolation and the mover for a long time: 200 kills a seed (SEEDS="1 2 3" or SOAK_MINUTES=120; an hour a seed)
	@cargo test --locked -p conme-stories -p conme-mover --no-run
	@tests/soak.sh

N ?= 22 200 1000
bench-operator: ## What the operator costs, into docs/benchmarks: make bench-operator N="22 200" (all three: half an hour)
	@echo "building in the release profile (first time: about 10 minutes)"
	@cargo build --locked --release -p conme-operator -p conme-bench
	@$(CARGO_TARGET_DIR)/release/conme-bench operator --comuni $(N)

LINKS ?= 10 100 0
SIZE ?=
ONLY ?=
PEERS ?=
bench-mover: ## What the mover costs beside rsync, borg, casync and nbdcopy, as root: make bench-mover LINKS="100 0"
	@echo "building in the release profile (first time: about 10 minutes)"
	@cargo build --locked --release -p conme-mover -p conme-bench --bins
	@$(CARGO_TARGET_DIR)/release/conme-bench mover --links $(LINKS) $(if $(SIZE),--size $(SIZE)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(PEERS),--peers $(PEERS))

mover: ## Build conme-mover, one static program for every Linux, and say where it is
	@cargo rustc --locked --release -p conme-mover --bin conme-mover -- -C target-feature=+crt-static
	@echo "$(CARGO_TARGET_DIR)/release/conme-mover"

check: ## Format, lints, generated files
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo run --locked -q -p conme-operator -- manifests --check .

manifests: ## Write the generated manifests: definitions and roles, in manifests/ and in the chart
	cargo run --locked -q -p conme-operator -- manifests .
