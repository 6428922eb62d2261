# The program with a client for the engine: for miners, and for executors that are containers. Build it on a Debian of
# the release that the program was built on, with a folder that has the program as the context:
#
#   install -D target/release/phalanx target/image/phalanx
#   docker build --tag phalanx:engine --file packaging/docker/engine.Dockerfile target/image
FROM debian:stable-slim
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates docker.io \
 && rm -rf /var/lib/apt/lists/*
COPY phalanx /usr/bin/phalanx
ENV PHALANX_STATE_DIR=/var/lib/phalanx
VOLUME /var/lib/phalanx
ENTRYPOINT ["/usr/bin/phalanx"]
