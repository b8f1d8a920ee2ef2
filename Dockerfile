# docker build -t headworks . && docker run --rm -p 8080:8080 -v ./headworks.toml:/etc/headworks.toml:ro headworks
#
# The file has to say `listen = ["0.0.0.0:8080"]` in [server], since the default is this machine only, and to have an
# [admin] table for the health check.
FROM rust:1-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The dependencies first: they change seldom, and their layer is kept. Stubs stand for the sources; benchmarks have none,
# so their sections are left out until the real Cargo.toml comes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/it benches examples \
    && echo 'fn main() {}' | tee src/main.rs tests/it/main.rs > examples/bench_load.rs \
    && touch src/lib.rs \
    && sed -i '/^\[\[bench\]\]/,/^$/d' Cargo.toml \
    && cargo build --profile dist --locked --bin headworks
COPY . .
RUN mkdir -p tests/it && echo 'fn main() {}' > tests/it/main.rs \
    && find src -exec touch {} + \
    && cargo build --profile dist --locked --bin headworks

FROM debian:bookworm-slim
# Authorities for upstreams over TLS; nothing else is needed beside the binary.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home --uid 10001 headworks
COPY --from=build /src/target/dist/headworks /usr/local/bin/headworks
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/headworks/
USER 10001
EXPOSE 8080
# Asks /live on the admin port, at the default address of [admin].
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["headworks", "health", "--admin", "127.0.0.1:9901"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["headworks"]
CMD ["run", "--config", "/etc/headworks.toml"]
