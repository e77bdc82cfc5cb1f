# One image for web and workers, installed from the same lock as everything else. `--build-arg TORCH=cuda` for the GPU worker.
FROM python:3.11-slim-bookworm
ARG TORCH=cpu
# PyTorch's CPU index, given here, saves gigabytes in the images without a GPU.
ARG PIP_EXTRA_INDEX_URL=
RUN useradd --create-home --uid 10001 preflab && install -d -o preflab -g preflab /data /srv/preflab
WORKDIR /srv/preflab
USER preflab
COPY --chown=preflab pyproject.toml LICENSE ./
COPY --chown=preflab requirements requirements
COPY --chown=preflab scripts scripts
COPY --chown=preflab app app
COPY --chown=preflab worker worker
RUN python scripts/setup.py --torch "$TORCH" && rm -rf /home/preflab/.cache
COPY --chown=preflab migrations migrations
COPY --chown=preflab templates templates
COPY --chown=preflab static static
COPY --chown=preflab experiments experiments
ENV PATH=/srv/preflab/.venv/bin:$PATH PREFLAB_DATA=/data
VOLUME /data
EXPOSE 8123
CMD ["python", "-m", "uvicorn", "--factory", "app.main:create_app", "--host", "0.0.0.0", "--port", "8123", "--no-access-log"]
