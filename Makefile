# make            release build; leaves kproxy_bin, ktransfer_bin and kmonitor_bin here
# make demo       run the three daemons with a Kafka of their own, until Ctrl-C or for DEMO_SECONDS=30 seconds
# make test       unit tests and stories on a real Kafka and ZooKeeper
# make soak       ktransfer under random faults on a real Kafka and ZooKeeper (SOAK_SECONDS=3600 SEED=1); the seed selects
#                 the faults, and a run that fails prints them; SOAK_GROUPS=kafka is without ZooKeeper
# make screenshots   pictures of the pages of all daemons, in target/screenshots (light, dark, on a phone)
# make bench      measure kproxy on a real Kafka (SECONDS_EACH=10 CONNECTIONS="8 64 512 4096"), then ktransfer;
#                 BASELINE=FOLDER also measures the binaries in FOLDER, in alternating runs;
#                 ENGINES=1 measures the Kafka clients without HTTP; ALLOCATIONS=1 counts the allocations for a request
# make bench-ktransfer   measure ktransfer only (MESSAGES=200000 WORKERS="16 32 100 500" LATENCY_MS=0 of the backend)
# make bench-kmonitor    kmonitor with many modules: answers, memory, requests (MODULES=1000 PARTITIONS_EACH=100)
# make fuzz       fuzz the parsers of untrusted input (SECONDS_EACH=600; needs nightly Rust and cargo-fuzz)
# make zabbix     the Zabbix templates in a real Zabbix server (Debian's packages; as root)
# make check      formatting, lints and documentation
# make pure       build without TLS, verify that no C is compiled, and test that build
# make install    into $(DESTDIR)$(PREFIX)
# make tools      install the tools that the other targets need (Debian, as root), or print the command to run
# make clean
#
# Everything is built with the release profile, tests and lints included: the tested code is the shipped code,
# measurements are meaningful, and the dependencies are compiled once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all
.PHONY: all demo test soak screenshots bench bench-ktransfer bench-kmonitor fuzz zabbix check pure install clean tools build-tools

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
# Most unit tests wait for time to pass.
UNIT_TEST_THREADS ?= 6
# Stories start servers, which take processor time, and then wait.
STORY_TEST_THREADS ?= $(shell nproc)
# Prints how long each story took. The option is unstable, so the test binary, and nothing else, runs as on nightly Rust.
TIMED := --config 'target."cfg(unix)".runner=["env","RUSTC_BOOTSTRAP=1"]'
SECONDS_EACH ?= 10
SOAK_SECONDS ?= 3600
SEED ?= 1
SOAK_GROUPS ?= zookeeper
CONNECTIONS ?= 8 64 512 4096
MESSAGES ?= 200000
MODULES ?= 1000
PARTITIONS_EACH ?= 100
WORKERS ?= 16 32 100 500
BASELINE_FOLDER = $(if $(BASELINE),$(abspath $(BASELINE)))
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARIES := kproxy_bin ktransfer_bin kmonitor_bin

all: build-tools
	$(CARGO) build --release --locked --bins
	install -m755 $(addprefix $(TARGET)/release/,$(BINARIES)) .

demo: tools all
	$(CARGO) build --release --locked --example demo
	KAFKA_HTTP_WRAPPER_BIN_DIR=. $(TARGET)/release/examples/demo

test: tools
	@.ci/tools monitoring browser
	$(CARGO) test --release --locked --no-run --lib --test stories
	RUST_TEST_THREADS=$(UNIT_TEST_THREADS) $(CARGO) test --release --locked --lib
	$(CARGO) test --release --locked --doc
	CHROMIUM=required RUST_TEST_THREADS=$(STORY_TEST_THREADS) $(CARGO) test --release --locked $(TIMED) --test stories -- \
	    -Z unstable-options --report-time

screenshots: build-tools
	@.ci/tools browser
	mkdir -p $(TARGET)/pages
	SAMPLE_PAGES=$(abspath $(TARGET)/pages) $(CARGO) test --release --locked --lib sample_pages_can_be_written
	$(CARGO) run --release --locked --example screenshots -- $(TARGET)/pages $(TARGET)/screenshots

soak: tools
	SOAK_SECONDS=$(SOAK_SECONDS) SEED=$(SEED) SOAK_GROUPS=$(SOAK_GROUPS) \
		$(CARGO) test --release --locked --test stories soak:: -- --nocapture

bench: tools
	@.ci/tools bench
	BASELINE=$(BASELINE_FOLDER) ENGINES=$(ENGINES) ALLOCATIONS=$(ALLOCATIONS) \
		$(CARGO) bench --locked --bench kproxy -- $(SECONDS_EACH) $(CONNECTIONS)
	$(if $(ENGINES)$(ALLOCATIONS),,$(MAKE) bench-ktransfer)

bench-ktransfer: tools
	@.ci/tools bench
	BASELINE=$(BASELINE_FOLDER) LATENCY_MS=$(LATENCY_MS) $(CARGO) bench --locked --bench ktransfer -- $(MESSAGES) $(WORKERS)

zabbix: tools all
	@.ci/tools zabbix
	$(CARGO) build --release --locked --example zabbix
	KAFKA_HTTP_WRAPPER_BIN_DIR=. $(TARGET)/release/examples/zabbix

bench-kmonitor: build-tools
	$(CARGO) bench --locked --bench kmonitor -- $(MODULES) $(PARTITIONS_EACH) $(SECONDS_EACH)

fuzz: build-tools
	fuzz/run $(SECONDS_EACH)

check: build-tools
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --all-targets -- -D warnings
	$(CARGO) clippy --release --locked --all-targets --no-default-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --release --locked --no-deps

# Crates that compile C or link compiled C; `make pure` fails if one is a dependency. `CC=/bin/false` is a second check:
# a build script that calls a C compiler fails. (rustc itself still links with `cc`.)
C_BUILDERS := cc cmake pkg-config vcpkg autotools bindgen curl-sys openssl-sys libz-sys ring aws-lc-sys zstd-sys
PURE := --locked --no-default-features
PURE_RELEASE := --release --target-dir $(TARGET)/pure

pure: tools
	@tree=$$($(CARGO) tree $(PURE) -e normal,build --prefix none --format '{p}'); \
	for crate in $(C_BUILDERS); do \
	    if grep -q "^$$crate v" <<<"$$tree"; then echo "not pure: $$crate is a dependency"; exit 1; fi; \
	done; \
	echo "$$(sort -u <<<"$$tree" | wc -l) dependencies; none of them compiles C ($(C_BUILDERS))"
	CC=/bin/false CXX=/bin/false $(CARGO) build $(PURE) $(PURE_RELEASE) --bins
	set -o pipefail; CC=/bin/false CXX=/bin/false $(CARGO) test $(PURE) $(PURE_RELEASE) --test stories path:: \
	    | tee $(TARGET)/pure/output
	@grep -Eq '^test result: ok\. [1-9]' $(TARGET)/pure/output || { echo "the path stories did not run"; exit 1; }

install:
	@for binary in $(BINARIES); do \
	    test -x $$binary || { echo "$$binary is not built: run make first"; exit 1; }; \
	done
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/kafka-http-wrapper
	install -m755 $(BINARIES) $(DESTDIR)$(PREFIX)/bin
	install -m644 *.md LICENSE $(DESTDIR)$(PREFIX)/share/kafka-http-wrapper
	cp -r conf docs $(DESTDIR)$(PREFIX)/share/kafka-http-wrapper

clean:
	$(CARGO) clean
	rm -f $(BINARIES)

tools:
	@.ci/tools build java

build-tools:
	@.ci/tools build
