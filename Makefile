# The commands of the project. `make demo` and `make test` need Rust and what package registries
# bring; `make setup`, which both run first, installs the rest or says what to install.

CARGO ?= cargo
# One optimised profile for everything, so that nothing is built twice.
PROFILE = --release
PYTHON ?= python3

.PHONY: help setup demo test package bench bench-blog examples interop interop-peer interop-v000 fmt \
	lint doc fuzz deep soak simulate chaos servers servers-stop

help:
	@echo "make demo        a TrailDB in an S3 answers through page faults; URL=s3://bucket/key for yours"
	@echo "make test        every test that this machine can run; says what it left out"
	@echo "make examples    the small programs of examples/, one after the other"
	@echo "make bench       the benchmarks; writes BENCHMARKS.md. Beside the C library: make interop-peer before it"
	@echo "make bench-slatedb  s3db beside SlateDB; needs its 0.18 from the registry, and minutes to build it"
	@echo "make bench-blog  the charts of the article that the project started from"
	@echo "make bench-paper the paper that s3db follows, and what its protocols cost today"
	@echo "make bench-s3db  s3db on this machine: commits, reads, recovery, freshness; DIRECTORY=/where"
	@echo "make interop     our tdb and the C library's, TDB=/path/to/it, on the same data"
	@echo "make interop-peer  what make bench needs to measure the C library beside ours"
	@echo "make peer-umap   LLNL UMap for section strength of make bench; UMAP=/its/source"
	@echo "make peer-fuse   a file by FUSE, for the same; root may mount it"
	@echo "make interop-v000  the C library reads through extmem serve; V000_SRC=/its/branch/userfault"
	@echo "make setup       what the build needs besides Rust"
	@echo "make servers     S3, HTTP and faulty fronts for the tests, on this machine"
	@echo "make deep        models of the ledger, sanitizers, Miri, SlateDB's peer; each by itself: deep-model"
	@echo "                 (SHUTTLE_ROUNDS=n), deep-asan, deep-tsan, deep-miri, deep-peer"
	@echo "make soak        ten minutes of random reads from sources that fail, each byte compared; SECONDS=n"
	@echo "make simulate    clusters of s3db clients under every fault; SEEDS=n, SIMULATE_ARGS=..."
	@echo "make chaos       s3db processes killed on bad lines to S3 and SQS; KILLS=n"
	@echo "make fmt lint doc fuzz package   the checks, one by one"

setup:
	@sh examples/setup.sh

# URL=s3://bucket/key asks a bucket of yours; DEMO_ARGS passes more options, see --help.
demo: setup
	@$(CARGO) run -q $(PROFILE) -p extmem-examples --bin demo -- $(if $(URL),--url '$(URL)') $(DEMO_ARGS)

test: setup
	@{ $(CARGO) test $(PROFILE) --workspace --no-fail-fast -- --show-output 2>&1; echo "cargo: $$?"; } \
		| awk -f examples/test-summary.awk
	@sh examples/packaged/run.sh

# A crate outside the workspace, on what `cargo package` makes.
package: setup
	@sh examples/packaged/run.sh

examples: setup
	@for name in own_source own_policy other_format shards; do \
		echo "== $$name"; \
		$(CARGO) run -q $(PROFILE) -p extmem-examples --bin $$name || exit 1; \
	done

# BENCH_ARGS passes more options, such as --only needle,cold or --quick; see `bench --help`.
# TDB=/path/to/the/C/tdb, BENCH_CSV=events.csv and BENCH_NOTE="how these were made" are for its section `tdb`.
# Figures of the C library want `make interop-peer` before it, and TDB= alone gives none, also of its index: the
# file that the tool is asked about is written by the library.
# BENCH_LIMIT, a command that runs another one with `{}` bytes of memory, is for the last row of its section
# `strength`: BENCH_LIMIT="sh examples/limit.sh {}" as root. The same section has UMap and FUSE after `make peer-umap` and
# `make peer-fuse`.
bench: export TDB := $(TDB)
bench: export BENCH_LIMIT := $(BENCH_LIMIT)
bench: export BENCH_CSV := $(BENCH_CSV)
bench: export BENCH_NOTE := $(BENCH_NOTE)
bench: setup
	@$(CARGO) build -q $(PROFILE) -p extmem-endpoint -p extmem-examples -p extmem-cli -p tdb-cli
	@$(CARGO) run -q $(PROFILE) -p extmem-examples --bin bench -- --write BENCHMARKS.md $(BENCH_ARGS)

# The paper that s3db follows, replayed in virtual time; QUICK=--quick for a glance.
.PHONY: bench-paper
bench-paper: setup
	@$(CARGO) run -q $(PROFILE) -p s3db-cli -- bench paper $(QUICK) --plots s3db/charts --write BENCHMARKS.md

# On a quiet machine, and on a disk: DIRECTORY=/where, if the folder for temporary files is none.
# BENCH_ARGS passes more options; see `s3db bench embedded --help`.
.PHONY: bench-s3db
bench-s3db: setup
	@$(CARGO) run -q $(PROFILE) -p s3db-cli -- bench embedded $(if $(DIRECTORY),--directory '$(DIRECTORY)') \
		$(BENCH_ARGS) --write BENCHMARKS.md

# SLATEDB_ARGS passes more options, such as --quick. A package of its own, whose 300 dependencies no other
# target builds: several minutes, the first time.
.PHONY: bench-slatedb
bench-slatedb: setup
	@$(CARGO) run -q --release --locked --manifest-path s3db/peer/Cargo.toml \
		--target-dir $(or $(CARGO_TARGET_DIR),target)/peer -- --write BENCHMARKS.md $(SLATEDB_ARGS)

bench-blog: setup
	@$(CARGO) build -q $(PROFILE) -p extmem-endpoint -p extmem-examples
	@$(CARGO) run -q $(PROFILE) -p extmem-examples --bin bench_blog -- --write BENCHMARKS.md $(BENCH_ARGS)

# Both tools make, dump, filter, merge and index the same data. INTEROP_ARGS passes more options.
interop: setup
	@$(CARGO) build -q $(PROFILE) -p extmem-endpoint -p extmem-examples -p tdb-cli
	@$(CARGO) run -q $(PROFILE) -p extmem-examples --bin interop -- --theirs '$(TDB)' $(INTEROP_ARGS)

# What section `strength` of `make bench` is measured beside, and leaves out where it is not built. Outside of the
# workspace, and of CI: UMAP=/path is a clone of https://github.com/LLNL/umap, which is compiled with our reader of it;
# the server of FUSE is a package of its own.
.PHONY: peer-umap peer-fuse
peer-umap:
	@sh pager/peer/umap.sh '$(UMAP)'

peer-fuse:
	@$(CARGO) build -q $(PROFILE) --locked --manifest-path pager/peer/Cargo.toml \
		--target-dir $(or $(CARGO_TARGET_DIR),target)/peer
	@mkdir -p $(or $(CARGO_TARGET_DIR),target)/release
	@cp $(or $(CARGO_TARGET_DIR),target)/peer/release/peer-fuse $(or $(CARGO_TARGET_DIR),target)/release/
	@echo $(or $(CARGO_TARGET_DIR),target)/release/peer-fuse

# Against the library that pkg-config knows, or TDB_LIB=/prefix with include/ and lib/ in it.
interop-peer:
	@sh examples/interop/peer.sh '$(TDB_LIB)'

# The first client of block servers, made of the C library's branch that has it, reads through ours.
# As root, or where vm.unprivileged_userfaultfd is 1. INTEROP_ARGS="--db a.tdb" adds databases.
interop-v000: setup
	@$(CARGO) build -q $(PROFILE) -p extmem-endpoint -p extmem-cli -p extmem-examples -p tdb-cli
	@client=$$(sh examples/interop/v000.sh '$(V000_SRC)') && \
	$(CARGO) run -q $(PROFILE) -p extmem-examples --bin interop -- --v000 "$$client" $(INTEROP_ARGS)

fmt:
	@$(CARGO) fmt --all

lint: setup
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy -q $(PROFILE) --workspace --all-targets --all-features -- -D warnings

doc: setup
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc -q $(PROFILE) --workspace --all-features --no-deps

# FUZZ_SECONDS=n searches longer. As long for each: there are four targets, three, and six.
fuzz: setup
	@sh traildb/fuzz/run.sh $(or $(FUZZ_SECONDS),60)
	@sh sources/fuzz/run.sh $$(( $(or $(FUZZ_SECONDS),60) * 3 / 4 ))
	@sh s3db/fuzz/run.sh $$(( $(or $(FUZZ_SECONDS),60) * 6 / 4 ))

# Eight threads, twenty regions, an eighth of the memory. SOAK_ARGS passes more options.
soak: setup
	@$(CARGO) run -q $(PROFILE) -p extmem-examples --bin soak -- --seconds $(or $(SECONDS),600) $(SOAK_ARGS)

# Outside of CI. Each in a folder of its own: its flags would have everything built again.
.PHONY: deep-model deep-asan deep-tsan deep-miri deep-peer
deep: deep-model deep-asan deep-tsan deep-miri deep-peer

deep-model: setup
	@RUSTFLAGS="--cfg shuttle" $(CARGO) test -q $(PROFILE) --target-dir target/deep -p extmem-pager --lib cache::model

# With the stable toolchain: see examples/deep/sanitize.sh for what is left out, and why.
# DEEP_PACKAGES="extmem-pager" runs the tests of these only.
deep-asan: setup
	@CARGO='$(CARGO)' DEEP_PACKAGES='$(DEEP_PACKAGES)' sh examples/deep/sanitize.sh address

deep-tsan: setup
	@CARGO='$(CARGO)' DEEP_PACKAGES='$(DEEP_PACKAGES)' sh examples/deep/sanitize.sh thread

# Says so and ends well where no toolchain has Miri.
deep-miri: setup
	@CARGO='$(CARGO)' sh examples/deep/miri.sh

# That s3db/peer goes with what our crates are now: it is outside the workspace, and `make bench-slatedb` alone
# builds it. Without SlateDB it has a tenth of the dependencies. Not in CI, which has no minute for them.
deep-peer: setup
	@$(CARGO) check -q --locked --no-default-features --tests --manifest-path s3db/peer/Cargo.toml \
		--target-dir $(or $(CARGO_TARGET_DIR),target)/peer

# Seeded schedules; a failing one prints how to replay it.
.PHONY: simulate
simulate: setup
	@$(CARGO) run -q $(PROFILE) -p extmem-s3db --features simulation --bin s3db-simulate -- \
		--seeds $(or $(SEEDS),20000) $(SIMULATE_ARGS)

# Over S3 and SQS where the environment names servers (see servers below), in directories anyway.
.PHONY: chaos
chaos: setup
	@KILLS=$(or $(KILLS),200) $(CARGO) test -q $(PROFILE) -p s3db-cli --test it kill:: -- --nocapture

# Prints the environment that the tests read: eval "$$(make -s servers)" sets a shell up.
servers: setup
	@$(CARGO) build -q $(PROFILE) -p extmem-endpoint -p extmem-examples 1>&2
	@sh examples/servers/servers.sh start

servers-stop:
	@sh examples/servers/servers.sh stop
