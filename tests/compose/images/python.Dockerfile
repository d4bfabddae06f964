# Stands in for docker.io/library/python where no registry of images can be reached.
FROM localhost/binsweep-debian:bookworm
RUN ln -s /usr/bin/python3 /usr/local/bin/python
