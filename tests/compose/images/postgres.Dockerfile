# Stands in for docker.io/library/postgres where no registry of images can be reached: Debian's PostgreSQL behind
# the same user, entrypoint, variables and data folder.
FROM localhost/binsweep-debian:bookworm
RUN groupadd --gid 999 postgres && useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql postgres \
 && apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends postgresql >/dev/null \
 && rm -rf /var/lib/apt/lists/* \
 && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/ \
 && mkdir -p /var/run/postgresql /var/lib/postgresql/data \
 && chown -R 999:999 /var/run/postgresql /var/lib/postgresql
COPY postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
ENV PGDATA=/var/lib/postgresql/data
USER 999:999
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
