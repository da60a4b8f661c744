# docker build -t saccade:0.2.0 .
# docker run --gpus all -v PHOTOS:/data:ro -v RUNS:/runs saccade:0.2.0 train --data /data --out /runs/first --resume auto
FROM python:3.11-slim

# torch.compile builds its kernels with a C++ compiler
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/saccade
COPY . .
# the versions of the last release; torch's wheels bring CUDA with them
RUN pip install --no-cache-dir -c constraints.txt .

# what is compiled is kept where any user may write
ENV XDG_CACHE_HOME=/tmp/cache PYTHONUNBUFFERED=1
WORKDIR /runs
# no shell in between: SIGTERM reaches the run
ENTRYPOINT ["saccade"]
CMD ["--help"]
