# Sourced. uv reads neither pip's configuration files nor PIP_*; packages should come from where pip would get them.

# pip_setting PIP NAME: each value of the setting on a line, the environment's first
pip_setting() {
    "$1" config list | sed -n "s/^[^=]*\.$2='\(.*\)'\$/\1/p" | sed 's/\\n/ /g' | tr -s ' ' '\n' | awk 'NF && !seen[$0]++'
}

# uv_like_pip PIP: sets UV_ARGS (an array) and the TLS variables so that uv looks where pip looks and trusts whom pip trusts
uv_like_pip() {
    local value
    UV_ARGS=()
    for value in $(pip_setting "$1" index-url | head -n 1); do UV_ARGS+=(--default-index "$value"); done
    for value in $(pip_setting "$1" extra-index-url); do UV_ARGS+=(--index "$value"); done
    for value in $(pip_setting "$1" find-links); do UV_ARGS+=(--find-links "$value"); done
    value=$(pip_setting "$1" cert | head -n 1)
    if [ -n "$value" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-$value}"; fi
    export UV_SYSTEM_CERTS=1 UV_INDEX_STRATEGY=unsafe-best-match # pip, too, compares all indexes
}
