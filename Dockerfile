# The image of Anabranch: the command `anabranch`, and nothing that workers do not need. Users build theirs FROM it: see
# helm/anabranch/README.md. Base images are pinned by exact tags; where your registry tells the digest, pin that, too.
FROM python:3.13.7-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/anabranch
COPY pyproject.toml constraints.txt README.md LICENSE CHANGELOG.md ./
COPY worker ./worker
RUN /opt/anabranch/bin/pip install --no-cache-dir --constraint constraints.txt ".[otel,sealing]"

FROM python:3.13.7-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="anabranch" \
      org.opencontainers.image.description="LLM agents on Kafka" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="python:3.13.7-slim-bookworm"
# tini: a signal that comes before Python has its handlers would be lost on process 1, and so would orphans of tools.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends "tini=0.19.0-1*" \
    && rm -rf /var/lib/apt/lists/*
# The base has no bytecode of Python's own library, and a container cannot write any: every start would compile it anew.
RUN python -m compileall -q -x "/(site-packages|idlelib|tkinter|turtledemo)/" /usr/local/lib/python3.*
COPY --from=build /opt/anabranch /opt/anabranch
ENV PATH=/opt/anabranch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "anabranch"]
CMD ["--help"]
