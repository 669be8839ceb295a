# The image of `web`, `worker` and `migrate`. It has no database server of its own: DATABASE_URL must be set.
# `make image-check` replays its steps without a container engine, and fails if it cannot understand one of them.

# Pin the base image with --build-arg PYTHON_DIGEST=sha256:... for a build that can be repeated.
ARG PYTHON_DIGEST=
FROM python:3.13-slim${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS python
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1


FROM python AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app
RUN python -m venv /venv

# Packages before code, so that a change of the code builds in seconds. Wheels only: a source archive would run its own
# build with packages that no lock names. The build backend gets a folder of its own, which stays behind in this stage.
# Build with --build-arg REQUIREMENTS=requirements-traces.lock for an image that can send traces (TRACES_URL).
ARG REQUIREMENTS=requirements-production.lock
COPY requirements-production.lock requirements-traces.lock requirements-build.lock ./
RUN /venv/bin/python -m pip install --require-hashes --only-binary :all: --requirement "$REQUIREMENTS" \
    && /venv/bin/python -m pip install --require-hashes --only-binary :all: --requirement requirements-build.lock \
        --target /backend

# The install is editable, which keeps the service beside its migrations.
COPY pyproject.toml alembic.ini ./
COPY migrations migrations
COPY service service
RUN PYTHONPATH=/backend /venv/bin/python -m pip install --no-deps --no-build-isolation --editable . \
    && /venv/bin/python -m compileall -q service migrations


FROM python
# The spool's folder is there for volumes, which take its owner over.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin kahuna \
    && install --directory --owner 10001 --group 10001 --mode 700 /var/spool/kahuna-sync
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH HOST=0.0.0.0
WORKDIR /app
USER 10001:10001
EXPOSE 8700
# The port is the worker's, if it has one. Both are asked whether they are alive, not whether the database is: a restart
# would not bring that back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + (os.environ.get('WORKER_PORT') or os.environ.get('PORT') or '8700') + '/livez', timeout=4)"]
# Exec form: the service itself is process 1 and hears the signals.
ENTRYPOINT ["kahuna-sync"]
CMD ["web"]
