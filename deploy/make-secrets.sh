#!/bin/sh
# Writes each secret that docker-compose.yml names into deploy/secrets/, once: what is there stays.
# The folder is closed to others; the files in it are open, since containers read them as users of their own.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
cd secrets

random() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

keep() { # NAME VALUE
    [ -s "$1" ] && return
    printf '%s\n' "$2" >"$1.partial"
    chmod 644 "$1.partial"
    mv "$1.partial" "$1"
    echo "deploy/secrets/$1"
}

for name in postgres_password redis_password s3_key_id s3_secret qdrant_key phalar_read_key phalar_ingest_key \
    phalar_admin_key grafana_password; do
    keep "$name" "$(random)"
done
keep redis.conf "requirepass $(cat redis_password)"
keep redis_url "redis://:$(cat redis_password)@redis:6379/0"
keep qdrant.yaml "service: {api_key: $(cat qdrant_key)}"
keep s3.json "{\"identities\": [{\"name\": \"phalar\", \"credentials\": [{\"accessKey\": \"$(cat s3_key_id)\", \
\"secretKey\": \"$(cat s3_secret)\"}], \"actions\": [\"Read\", \"Write\", \"List\", \"Admin\"]}]}"
