# Writes the one user from the environment, and becomes PgBouncer, so that signals reach it.
set -eu
umask 077
printf '"kahuna_sync" "%s"\n' "${POSTGRES_PASSWORD:?}" > /tmp/userlist.txt
exec pgbouncer /etc/pgbouncer/kahuna-sync.ini
