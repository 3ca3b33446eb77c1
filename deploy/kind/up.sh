#!/usr/bin/env bash
# From nothing to the reference pipelines on a laptop's cluster. Needs docker, kind, kubectl, helm and
# helmfile; run again, it goes on from what is there. `kind delete cluster --name mesh` removes it.
set -euo pipefail
cd "$(dirname "$0")/../.."

TAG="${TAG:-0.1.0}"
export KUBECONFIG="${KUBECONFIG:-$PWD/.mesh/kind.kubeconfig}"
mkdir -p "$(dirname "$KUBECONFIG")"

say() { printf '== %s\n' "$*"; }
apply() { kubectl apply --namespace mesh --filename -; }

say "cluster"
if ! kind get clusters | grep --quiet --line-regexp mesh; then
  kind create cluster --config deploy/kind/cluster.yaml --wait 120s
fi
kind export kubeconfig --name mesh

say "images"
docker build --file deploy/image/Dockerfile --target platform --tag "mesh:$TAG" .
docker build --file deploy/image/Dockerfile --target with-connectors --tag "mesh-with-connectors:$TAG" .
kind load docker-image --name mesh "mesh:$TAG" "mesh-with-connectors:$TAG"

say "settings and secrets"
kubectl create namespace mesh --dry-run=client --output yaml | kubectl apply --filename -
# As the namespace of an ingress has it, from which people come.
kubectl label namespace mesh mesh/may-reach-dagster=true --overwrite
kubectl create configmap mesh-settings --namespace mesh --from-env-file deploy/environments/kind.env \
  --dry-run=client --output yaml | kubectl apply --filename -
if ! kubectl get secret postgres --namespace mesh >/dev/null 2>&1; then
  # Letters and digits only: they stand in URLs below.
  mesh="$(openssl rand -hex 16)" dagster="$(openssl rand -hex 16)" objects="$(openssl rand -hex 16)"
  secret() { kubectl create secret generic "$@" --namespace mesh --dry-run=client --output yaml | apply; }
  secret mesh-object-store --from-literal AWS_ACCESS_KEY_ID=mesh \
    --from-literal AWS_SECRET_ACCESS_KEY="$objects"
  secret mesh-warehouse \
    --from-literal MESH_WAREHOUSE_URL="postgresql://mesh:$mesh@postgres:5432/warehouse"
  secret mesh-dagster-database --from-literal postgresql-password="$dagster" \
    --from-literal url="postgresql://dagster:$dagster@postgres:5432/dagster"
  for empty in mesh-datahub mesh-commerce mesh-fleet mesh-flights mesh-weather; do secret "$empty"; done
  # Last: who finds it finds the others.
  secret postgres --from-literal postgres="$(openssl rand -hex 16)" \
    --from-literal mesh="$mesh" --from-literal dagster="$dagster"
fi

say "PostgreSQL and object store"
kubectl apply --namespace mesh --filename deploy/kind/neighbours.yaml
kubectl rollout status --namespace mesh --timeout 180s deployment/postgres deployment/objects

say "Dagster and the domains"
helmfile --file deploy/helmfile.yaml.gotmpl --environment kind apply --state-values-set \
  "tags.platform=$TAG,tags.commerce=$TAG,tags.fleet=$TAG,tags.flights=$TAG,tags.weather=$TAG"

say "is all there?"
helm test dagster --namespace mesh --logs

say "the reference pipelines"
kubectl port-forward --namespace mesh service/dagster-dagster-webserver 3000:3000 >/dev/null &
trap 'kill %1' EXIT
python3 deploy/kind/pipelines.py http://127.0.0.1:3000
