# Keybaton. `make test` is what CI runs; it installs what the tests need.

GO       ?= go
STATIC   := CGO_ENABLED=0
LDFLAGS  := -s -w
STATICCHECK_VERSION := v0.8.2

.PHONY: build test test-go lint deps bench fuzz demo clean

build: ## one static binary
	$(STATIC) $(GO) build -trimpath -ldflags='$(LDFLAGS)' -o bin/keybaton ./cmd/keybaton

demo: build ## watch a key being replaced under load
	./bin/keybaton demo

test: deps lint test-go ## everything

# The crash tests run once more without the race detector, at every effect.
test-go:
	$(GO) test -race -shuffle=on -timeout 30m ./...
	$(GO) test -shuffle=on -timeout 15m ./internal/sim

lint:
	@test -z "$$(gofmt -l .)" || { echo "run gofmt -w on:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION) ./...

# The tests start real servers. On Debian and Ubuntu they are installed when
# they are missing; elsewhere put rabbitmq-server, redis-server, moto_server and
# the programs of PostgreSQL on the PATH.
deps:
	@sh scripts/deps.sh

bench: ## figures against nginx, in one run; each target ends with one line of JSON
	$(GO) run ./bench

fuzz: ## a minute for each parser
	@sh scripts/fuzz.sh

clean:
	rm -rf bin dist
