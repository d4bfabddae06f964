# Stands in for ghcr.io/versity/versitygw where no registry of images can be reached: s3rver behind the same
# entrypoint and variables. It checks signatures, and keeps what it is given in /data.
FROM localhost/binsweep-debian:bookworm
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends nodejs wget >/dev/null \
 && rm -rf /var/lib/apt/lists/*
COPY node_modules /opt/s3/node_modules
COPY s3.js /opt/s3/s3.js
COPY s3-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
ENTRYPOINT ["docker-entrypoint.sh"]
