#!/bin/sh
# The entry point of every container: it starts only if each variable named in SECRETS holds a secret of its own.
#
#   SECRETS="NAME ..." guard.sh PROGRAM [ARGUMENT ...]
for name in $SECRETS; do
  value=$(printenv "$name")
  case "$value" in
    "") reason="is empty" ;;
    *change-me*) reason="is the example's" ;;
    ????????????????*) continue ;;
    *) reason="is shorter than 16 characters" ;;
  esac
  echo "refusing to start: $name $reason; deploy/new-env writes a .env with fresh secrets" >&2
  sleep 5 # so that the restart policy does not try again in a tight loop
  exit 1
done
exec "$@"
