# Sourced by every script of this folder: where components go, and how packages of a Debian mirror are unpacked there.
#
# A component is a folder CACHE/NAME that is complete when it holds the file `ok`. It is built as CACHE/NAME.new under a lock and moved
# into place at the end, so an interrupted or concurrent run does no harm. Nothing is installed in the system and no root is needed:
# apt resolves and downloads with lists and state of its own, dpkg-deb unpacks.
#
# CACHE is $VFIOBOX_CACHE, or vfiobox in $XDG_CACHE_HOME (default ~/.cache). $VFIOBOX_DEBIAN_MIRROR names a mirror (a URI) instead of the
# one in the machine's apt configuration. The last line on stdout is the component's folder; progress and errors go to stderr.

cache=${VFIOBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vfiobox}

say() { echo "provision $component: $*" >&2; }
die() {
  say "$*"
  exit 1
}

# need TOOL... : each must be on PATH; the message names the Debian package.
need() {
  missing=
  for tool in "$@"; do
    command -v "$tool" >/dev/null 2>&1 && continue
    case $tool in
      cc) missing="$missing gcc libc6-dev" ;;
      xz) missing="$missing xz-utils" ;;
      flock) missing="$missing util-linux" ;;
      dpkg-deb) missing="$missing dpkg" ;;
      apt-get | apt-cache) missing="$missing apt" ;;
      *) missing="$missing $tool" ;;
    esac
  done
  [ -z "$missing" ] || die "missing tools, on Debian: sudo apt-get install$missing"
}

# begin NAME RECIPE : take the lock; ends the script when the component is there already. RECIPE changes when the contents shall.
# With PROVISION_CHECK set it only tells: status 0 and the folder, or 1.
begin() {
  component=$1 recipe=$2
  [ "$(uname -m)" = x86_64 ] || die "only for x86_64 machines"
  case $cache in *[[:space:]:,\"\'\\]*) die "the cache folder's path has a space, comma, colon or quote in it: $cache" ;; esac
  [ -d "$cache" ] || [ -z "${PROVISION_CHECK:-}" ] || exit 1
  mkdir -p "$cache" 2>/dev/null || die "cannot create the cache folder $cache"
  cache=$(cd "$cache" && pwd -P)
  dest=$cache/$component new=$cache/$component.new log=$cache/$component.log
  [ "$(cat "$dest/ok" 2>/dev/null)" != "$recipe" ] || {
    echo "$dest"
    exit 0
  }
  [ -z "${PROVISION_CHECK:-}" ] || exit 1
  need flock
  exec 9>"$cache/.$component.lock"
  flock -n 9 || {
    say "another run is at it, waiting"
    flock 9
  }
  [ "$(cat "$dest/ok" 2>/dev/null)" != "$recipe" ] || {
    echo "$dest"
    exit 0
  }
  started=$(date +%s)
  rm -rf "$new"
  mkdir "$new"
  : >"$log"
  trap 'rm -rf "$new"' EXIT
  trap 'exit 130' INT TERM HUP
}

# finish : stamp, move into place, name the folder.
finish() {
  rm -rf "$new/.apt" "$new/.debs"
  echo "$recipe" >"$new/ok"
  rm -rf "$dest"
  mv "$new" "$dest"
  trap - EXIT
  say "done in $(($(date +%s) - started)) s, $(du -sm "$dest" | cut -f1) MB"
  echo "$dest"
}

# run COMMAND... : quiet, into the log; on failure the log's end and a one-line reason.
run() {
  echo "+ $*" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null || {
    tail -n 8 "$log" | sed 's/^/  /' >&2
    die "failed: $(echo "$*" | cut -c1-120) (log: $log)"
  }
}

# The Debian mirror (not the security one) of the machine's apt configuration, in either of apt's two formats.
debian_mirror() {
  if [ -n "${VFIOBOX_DEBIAN_MIRROR:-}" ]; then
    echo "$VFIOBOX_DEBIAN_MIRROR"
    return
  fi
  {
    for list in /etc/apt/sources.list.d/*.sources; do
      [ ! -r "$list" ] || awk '
        function stanza() { if (deb && !off) print suites " | " uris; suites = uris = ""; deb = off = 0 }
        /^[ \t]*$/ { stanza() }
        /^#/ { next }
        { key = tolower($1); value = $0; sub(/^[^:]*:[ \t]*/, "", value) }
        key == "types:" { deb = (" " value " ") ~ / deb / }
        key == "uris:" { split(value, one, " "); uris = one[1] }
        key == "suites:" { suites = value }
        key == "enabled:" { off = tolower(value) ~ /^no/ }
        END { stanza() }' "$list"
    done
    for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
      [ ! -r "$list" ] || sed -nE 's/^deb[ \t]+(\[[^]]*\][ \t]+)?([^ \t]+)[ \t]+([^ \t]+).*/\3 | \2/p' "$list"
    done
  } | sed -nE 's/^(bookworm|trixie|forky|sid|oldstable|stable|testing|unstable)( [^|]*)?\| (.*)$/\3/p' | head -n 1
}

# apt_open SUITE... : read the package lists of these suites into a private state, with those of source packages when `sources` is set.
# Afterwards `apt` and `apt_query` use it.
sources=
apt_open() {
  need apt-get apt-cache dpkg-deb
  mirror=$(debian_mirror)
  [ -n "$mirror" ] || die "no Debian mirror in the machine's apt configuration; name one in VFIOBOX_DEBIAN_MIRROR"
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [ -r "$keyring" ] || die "missing tools, on Debian: sudo apt-get install debian-archive-keyring"
  state=$new/.apt
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/preferences.d"
  : >"$state/status"
  printf 'Types: deb%s\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "${sources:+ deb-src}" "$mirror" "$*" "$keyring" >"$state/list.sources"
  printf 'Dir::Etc::sourcelist "%s";\n' "$state/list.sources" >"$state/conf"
  cat >>"$state/conf" <<END
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "$state/preferences";
Dir::Etc::preferencesparts "$state/preferences.d";
Dir::State "$state";
Dir::State::lists "$state/lists";
Dir::State::status "$state/status";
Dir::Cache "$state/cache";
Dir::Cache::archives "$state/cache/archives";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
Debug::NoLocking "true";
END
  [ "$(id -u)" != 0 ] || echo 'APT::Sandbox::User "root";' >>"$state/conf"
  say "reading the package lists of $*"
  apt update
}
apt() { APT_CONFIG=$state/conf run apt-get -qq "$@"; }
apt_query() { APT_CONFIG=$state/conf apt-cache "$@" 2>>"$log"; }

# host_suite : the Debian release of this machine, for what shall run with the machine's own C library.
host_suite() {
  (
    . /etc/os-release 2>/dev/null
    [ "${ID:-}" = debian ] && [ -n "${VERSION_CODENAME:-}" ] || die "this machine is no Debian: install $1 with its package manager"
    echo "$VERSION_CODENAME"
  )
}

# newest PACKAGE SERIES : the highest version SERIES.* that the suites have.
newest() {
  apt_query madison "$1" | awk '{ print $3 }' | grep -E "^([0-9]+:)?$(echo "$2" | sed 's/\./[.]/g')[.+~-]" | sort -V | tail -n 1
}

# closure SUITE PACKAGE... : these packages (from SUITE where it has them) and all they depend on, as NAME=VERSION, one a line.
closure() {
  APT_CONFIG=$state/conf apt-get -qq -s -t "$1" install "${@:2}" >"$state/simulated" 2>>"$log" || die "apt finds no way to install $* (log: $log)"
  sed -nE 's/^Inst ([^ ]+) (\[[^]]*\] )?\(([^ ]+) .*/\1=\3/p' "$state/simulated"
}

# fetch PACKAGE[=VERSION]... : the package files, into $new/.debs.
fetch() {
  mkdir -p "$new/.debs"
  (cd "$new/.debs" && apt download "$@") || exit 1
}

# unpack FOLDER : everything in $new/.debs goes below FOLDER, and the package files away.
unpack() {
  mkdir -p "$1"
  for deb in "$new"/.debs/*.deb; do
    run dpkg-deb -x "$deb" "$1"
    rm -f "$deb"
  done
}
