//! The command line of systemd-nspawn: a pure function of the machine's description, in a fixed order.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::config::{Bind, MachineConfig, Network};
use crate::unit_path::{GUEST_DIR, UNIT_PATH};
use crate::user_range::UserRange;

/// First version with `--private-users-ownership`. Source: systemd NEWS 250.
const OWNERSHIP_SINCE: u32 = 250;

/// First version with `--suppress-sync`. Source: systemd NEWS 250.
const SUPPRESS_SYNC_SINCE: u32 = 250;

/// First version that maps the owners of bound files. Source: systemd NEWS 248, systemd-nspawn(1).
const IDMAP_SINCE: u32 = 248;

/// What the command line needs beside the description: what was prepared on this host.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The folder that is the machine's root.
    pub root: PathBuf,
    /// The folder bound at `/local`.
    pub local: PathBuf,
    /// The host users the machine's users are mapped to.
    pub user_range: Option<UserRange>,
    /// The host side of the machine's link.
    pub link: Option<String>,
}

/// The arguments of systemd-nspawn, without the program's name.
#[must_use]
pub fn argv(config: &MachineConfig, prepared: &Prepared, nspawn_version: u32) -> Vec<OsString> {
    let spec = config.spec();
    let mut args: Vec<OsString> = [
        "--quiet",
        "--boot",
        "--keep-unit",
        "--register=no",
        "--settings=no",
        "--notify-ready=yes",
        "--console=read-only",
        "--link-journal=no",
    ]
    .map(OsString::from)
    .into();
    args.push(format!("--machine={}", config.name()).into());
    args.push(join("--directory=", &prepared.root));
    if let Some(range) = prepared.user_range {
        args.push(format!("--private-users={}:{}", range.base(), range.length()).into());
        if nspawn_version >= OWNERSHIP_SINCE {
            args.push("--private-users-ownership=off".into());
        }
    }
    if !spec.persist && nspawn_version >= SUPPRESS_SYNC_SINCE {
        args.push("--suppress-sync=yes".into());
    }
    match (spec.network, &prepared.link) {
        (Network::Host, _) => {}
        (Network::Veth, Some(link)) => {
            args.push(format!("--network-veth-extra={link}:host0").into())
        }
        (Network::None | Network::Veth, _) => args.push("--private-network".into()),
    }
    args.push(bind_argument(
        "--bind-ro=",
        &prepared.local,
        Path::new(GUEST_DIR),
        "",
    ));
    let id_map = if prepared.user_range.is_some() && nspawn_version >= IDMAP_SINCE {
        ":idmap"
    } else {
        ""
    };
    for Bind {
        host_path,
        guest_path,
        read_only,
    } in &spec.binds
    {
        let option = if *read_only { "--bind-ro=" } else { "--bind=" };
        args.push(bind_argument(option, host_path, guest_path, id_map));
    }
    args.push(format!("--setenv=SYSTEMD_UNIT_PATH={UNIT_PATH}").into());
    // the machine has no disk or metadata service for cloud-init to look for
    args.push("cloud-init=disabled".into());
    args
}

fn join(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push(path);
    argument
}

/// Colons and backslashes in a bind's paths are escaped. Source: systemd-nspawn(1), `--bind=`.
fn bind_argument(option: &str, host_path: &Path, guest_path: &Path, suffix: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let escaped = |path: &Path| {
        let mut out = Vec::new();
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b'\\') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
        OsString::from_vec(out)
    };
    let mut argument = OsString::from(option);
    argument.push(escaped(host_path));
    argument.push(":");
    argument.push(escaped(guest_path));
    argument.push(suffix);
    argument
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MachineBuilder, Rootfs};

    fn line(builder: MachineBuilder, version: u32, mapped: bool) -> String {
        let config = builder.build().unwrap();
        let range = crate::user_range::UserRange::pick(config.name(), &[]);
        let prepared = Prepared {
            root: "/r/root".into(),
            local: "/r/local".into(),
            user_range: mapped.then_some(range),
            link: (config.spec().network == Network::Veth).then(|| "nr-web-1".into()),
        };
        argv(&config, &prepared, version)
            .join(" ".as_ref())
            .into_string()
            .unwrap()
    }

    fn base() -> MachineBuilder {
        MachineConfig::builder("web".parse().unwrap(), Rootfs::Host)
    }

    #[test]
    fn the_whole_line_in_its_order() {
        assert_eq!(
            line(base(), 252, false),
            "--quiet --boot --keep-unit --register=no --settings=no --notify-ready=yes --console=read-only \
             --link-journal=no --machine=web --directory=/r/root --suppress-sync=yes \
             --network-veth-extra=nr-web-1:host0 --bind-ro=/r/local:/local \
             --setenv=SYSTEMD_UNIT_PATH=/local/systemd: cloud-init=disabled"
        );
    }

    #[test]
    fn options_follow_the_version_and_the_description() {
        let bind = Bind {
            host_path: "/a:b".into(),
            guest_path: "/c".into(),
            read_only: true,
        };
        let table = [
            (line(base(), 247, true), "--private-users-ownership", false),
            (
                line(base(), 250, true),
                "--private-users-ownership=off",
                true,
            ),
            (line(base(), 247, false), "--suppress-sync", false),
            (
                line(base().network(Network::None), 252, false),
                "--private-network",
                true,
            ),
            (
                line(base().network(Network::Host), 252, false),
                "network",
                false,
            ),
            (
                line(base().bind(bind.clone()), 252, true),
                "--bind-ro=/a\\:b:/c:idmap",
                true,
            ),
            (
                line(base().bind(bind), 252, false),
                "--bind-ro=/a\\:b:/c ",
                true,
            ),
        ];
        for (line, part, there) in table {
            assert_eq!(line.contains(part), there, "{part} in {line}");
        }
    }
}
