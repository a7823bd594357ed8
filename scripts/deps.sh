#!/bin/sh
# Installs what the tests need and the machine lacks: real vendors to rotate at
# (RabbitMQ, Redis, PostgreSQL, and moto for AWS). With "bench": nginx and wrk as well.
set -eu
want=""
have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }
have rabbitmq-server || want="$want rabbitmq-server"
have initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || want="$want postgresql"
have redis-server || want="$want redis-server"
have gcc || want="$want gcc libc6-dev" # the race detector links with it
if [ "${1:-}" = bench ]; then
	have nginx || want="$want nginx-light"
	have wrk || want="$want wrk"
fi
# moto is a Python package: it gets a place of its own in the user's cache.
moto="${XDG_CACHE_HOME:-$HOME/.cache}/keybaton/moto"
if ! have moto_server && [ ! -x "$moto/bin/moto_server" ]; then
	python3 -c 'import ensurepip' 2>/dev/null || want="$want python3-venv"
	need_moto=yes
fi
install_moto() {
	[ "${need_moto:-}" = yes ] || return 0
	echo "installing: moto in $moto"
	python3 -m venv "$moto"
	"$moto/bin/pip" install -q 'moto[server]==5.2.1'
}
if [ -z "$want" ]; then
	install_moto
	exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "missing:$want; install them with this system's package manager" >&2
	exit 1
fi
sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
# Packages start their servers when they are installed; the tests start their own.
policy=/usr/sbin/policy-rc.d
made=""
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
	$sudo chmod +x "$policy"
	made=yes
fi
trap '[ -z "$made" ] || $sudo rm -f "$policy"' EXIT
echo "installing:$want"
$sudo apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $want >/dev/null
install_moto
