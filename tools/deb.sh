#!/bin/bash
# A Debian package of the checkout: the wheel's files, units, mount(8)'s helpers, man pages, completion, alerts.
# tools/deb.sh DIRECTORY: the package is put there. Needs the development environment (.venv), for its pip and compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y pyproject.toml)}
version=$("$python" -c 'import pyerofs; print(pyerofs.__version__)')
architecture=$(dpkg --print-architecture)
root=$work/root

"$python" -W ignore -m pip --quiet --disable-pip-version-check wheel --no-deps --no-build-isolation --wheel-dir "$work/wheel" .
"$python" -m pip --quiet --disable-pip-version-check install --no-deps --no-index --no-compile \
	--target "$root/usr/lib/python3/dist-packages" "$work"/wheel/pyerofs-*.whl
rm -rf "$root/usr/lib/python3/dist-packages/bin"
rm -f "$root"/usr/lib/python3/dist-packages/pyerofs-*.dist-info/{direct_url.json,REQUESTED}
strip --strip-unneeded "$root"/usr/lib/python3/dist-packages/pyerofs/_core*.so

entry() { # PATH MODULE FUNCTION
	install -d "$(dirname "$root$1")"
	printf '#!/usr/bin/python3 -P\nimport sys\n\nfrom %s import %s\n\nsys.exit(%s())\n' "$2" "$3" "$3" >"$root$1"
	chmod 755 "$root$1"
}
entry /usr/bin/pyerofs pyerofs.cli.start main
for helper in nbd fuse oci; do entry "/usr/sbin/mount.erofs.$helper" pyerofs.cli.mount_helper "$helper"; done

install -d "$root/usr/lib/systemd/system" "$root/usr/share/bash-completion/completions" \
	"$root/usr/share/doc/pyerofs/examples" "$root/DEBIAN"
install -m 644 systemd/*.service systemd/*.timer "$root/usr/lib/systemd/system"
sed -i 's#^ExecStart=pyerofs#ExecStart=/usr/bin/pyerofs#' "$root"/usr/lib/systemd/system/*.service
"$python" -m tools.man "$root/usr/share/man"
"$python" -m tools.completion >"$root/usr/share/bash-completion/completions/pyerofs"
cp -r deploy/* "$root/usr/share/doc/pyerofs/examples"
cp README.md SECURITY.md "$root/usr/share/doc/pyerofs"
cp LICENSE "$root/usr/share/doc/pyerofs/copyright"
gzip -9n <CHANGELOG.md >"$root/usr/share/doc/pyerofs/changelog.gz"
find "$root/usr/share/man" -type f -name '*.[58]' -exec gzip -9n {} +
find "$root" -name __pycache__ -prune -exec rm -rf {} +
chmod -R u=rwX,go=rX "$root"

cat >"$root/DEBIAN/control" <<CONTROL
Package: pyerofs
Version: $version
Architecture: $architecture
Maintainer: pyerofs <pyerofs@localhost>
Section: admin
Priority: optional
Depends: python3 (>= 3.11), python3-cffi-backend, python3-pycurl, libc6 (>= 2.34), zlib1g
Recommends: python3-zstandard, libnbd-bin, fuse3
Suggests: cryptsetup-bin, python3-h2, podman, containerd, prometheus-node-exporter
Installed-Size: $(du -sk --apparent-size "$root" | cut -f 1)
Description: mount EROFS layers of OCI images lazily
 A container, virtual machine or job that needs a few per cent of its image
 fetches a few per cent of it: the kernel reads a network block device, and
 pyerofs answers each read from its cache or with a range request to the
 registry. It converts ordinary images, and verifies what it serves.
CONTROL
cat >"$root/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
	if command -v py3compile >/dev/null; then py3compile -p pyerofs || true; fi
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload || true
		# mounts that live on get a daemon of this version
		[ -z "$2" ] || /usr/bin/pyerofs reattach --all -q || true
	fi
fi
SCRIPT
cat >"$root/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
if command -v py3clean >/dev/null; then py3clean -p pyerofs || true; fi
SCRIPT
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm"
mkdir -p "$out"
dpkg-deb --root-owner-group -Zxz --build "$root" "$out/pyerofs_${version}_$architecture.deb"
