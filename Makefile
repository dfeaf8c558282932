# What a newcomer types. Each target says what it installs before it does, is safe
# to run twice, and leaves nothing running.

.DEFAULT_GOAL := help
.PHONY: help build demo test test-chaos test-sim bench lint fmt clean-services

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

build: ## the binary, target/release/longshore
	cargo build --release --locked

demo: ## builds zlib on a coordinator and two workers, live (installs what is missing)
	@scripts/demo.sh

test: ## every test, with RabbitMQ and Docker Engines of its own (installs what is missing)
	@scripts/test.sh

test-chaos: ## a fleet under faults; ROWS=kill-worker,... (`scripts/chaos.sh --list`); installs what is missing
	@scripts/chaos.sh $(ROWS)

test-sim: ## 100,000 schedules of faults in a simulated world, and every rule broken once; SEED=n tells one
	@scripts/test-sim.sh $(SEED)

bench: ## measures it beside what people use today; ROWS=chain10,idle RUNS=5 (installs what is missing)
	@scripts/bench.sh $(if $(ROWS),--rows $(ROWS)) $(if $(RUNS),--runs $(RUNS))

lint: ## fmt, clippy, cargo deny, shellcheck, as CI does
	@scripts/lint.sh

fmt: ## formats the Rust code
	cargo fmt --all

clean-services: ## ends services that an interrupted test or demo may have left
	@scripts/clean-services.sh
