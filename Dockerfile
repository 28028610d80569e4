# surefoot with a CPU build of torch: `docker build -t surefoot .`, then `docker run --rm surefoot demo`.
# For a GPU, start from an image that has torch for it, and leave out the line that installs torch.
FROM python:3.11-slim
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
WORKDIR /src
COPY constraints.txt pyproject.toml hatch_build.py README.md LICENSE CHANGELOG.md CITATION.cff ./
ARG TORCH_INDEX
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY src src
RUN pip install -c constraints.txt '.[judge,serve]' && useradd --create-home user
USER user
WORKDIR /home/user
ENTRYPOINT ["surefoot"]
CMD ["--help"]
