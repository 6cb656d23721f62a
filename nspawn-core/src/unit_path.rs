//! The folder that is put on the machine's unit path: unit files, drop-ins, what to start, what to mask.
//!
//! It is bound into the machine at [`GUEST_DIR`]`/systemd`; `SYSTEMD_UNIT_PATH` names that folder with a
//! colon after it, which keeps the guest's own unit path. Nothing in the image is changed.
//!
//! ```text
//! local/systemd/web.service                         the unit file
//! local/systemd/web.service.d/limits.conf           a drop-in beside it
//! local/systemd/web.service.d/50-environment.conf   the environment given for the machine's units
//! local/systemd/multi-user.target.d/wants.conf      what to start
//! local/systemd/systemd-firstboot.service           -> /dev/null: masked
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::config::{MachineConfig, Network};
use crate::error::{MachineError, PathContext as _};

/// Where the host's folder is bound inside the machine.
pub const GUEST_DIR: &str = "/local";

/// The value of `SYSTEMD_UNIT_PATH`. Source: systemd.unit(5): a trailing colon appends the usual path.
pub const UNIT_PATH: &str = "/local/systemd:";

/// Units that have no place in a machine: they would stop the boot at a prompt or work on hardware.
const MASKED_ALWAYS: [&str; 9] = [
    "systemd-firstboot.service",
    "console-getty.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "fstrim.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "man-db.timer",
    "dpkg-db-backup.timer",
];

/// Units that wait for a link which the machine does not have.
const MASKED_WITHOUT_LINK: [&str; 2] = [
    "systemd-networkd-wait-online.service",
    "NetworkManager-wait-online.service",
];

/// NetworkManager leaves an interface with foreign addresses alone, but waits for one of its own.
const MASKED_WITH_LINK: [&str; 1] = ["NetworkManager-wait-online.service"];

/// What stands in the folder, as a plan: file or link by relative path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitDir {
    entries: BTreeMap<String, Entry>,
}

/// One place in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file with this text.
    File(String),
    /// A link to `/dev/null`: the unit is masked.
    Mask,
}

impl UnitDir {
    /// Plans the folder for a machine. A pure function of the description.
    #[must_use]
    pub fn plan(config: &MachineConfig) -> Self {
        let spec = config.spec();
        let mut entries = BTreeMap::new();
        let by_network: &[&str] = match spec.network {
            Network::Veth => &MASKED_WITH_LINK,
            Network::Host | Network::None => &MASKED_WITHOUT_LINK,
        };
        let asked = spec.masks.iter().map(|name| name.as_str());
        for name in MASKED_ALWAYS.iter().chain(by_network).copied().chain(asked) {
            entries.insert(name.to_owned(), Entry::Mask);
        }
        // after the masks: a unit that the user brings is not masked by us
        for unit in &spec.units {
            entries.insert(
                unit.file_name().to_string(),
                Entry::File(unit.text().to_owned()),
            );
            for drop_in in unit.drop_ins() {
                entries.insert(
                    format!("{}/{}", drop_in.folder, drop_in.file),
                    Entry::File(drop_in.text.clone()),
                );
            }
            if !spec.environment.is_empty() && unit.name().kind() == "service" {
                let path = format!("{}.d/50-environment.conf", unit.name());
                entries.insert(path, Entry::File(environment_drop_in(&spec.environment)));
            }
        }
        if !spec.units.is_empty() {
            let names: Vec<&str> = config.unit_names().map(|n| n.as_str()).collect();
            let wants = format!("[Unit]\nWants={}\n", names.join(" "));
            entries.insert("multi-user.target.d/wants.conf".into(), Entry::File(wants));
        }
        Self { entries }
    }

    /// The places, by path relative to the folder.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(path, entry)| (path.as_str(), entry))
    }

    /// Writes the folder, which must not exist yet.
    ///
    /// # Errors
    ///
    /// [`MachineError::Path`] naming the file that could not be written.
    pub fn write(&self, dir: &Path) -> Result<(), MachineError> {
        make_folder(dir)?;
        for (relative, entry) in &self.entries {
            let path = dir.join(relative);
            if let Some(parent) = path
                .parent()
                .filter(|parent| *parent != dir && !parent.exists())
            {
                make_folder(parent)?;
            }
            match entry {
                Entry::Mask => symlink("/dev/null", &path).at("make", &path)?,
                Entry::File(text) => {
                    fs::write(&path, text).at("write", &path)?;
                    // readable for the machine's root, which may be another user of the host
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
                        .at("write", &path)?;
                }
            }
        }
        Ok(())
    }
}

fn make_folder(dir: &Path) -> Result<(), MachineError> {
    fs::create_dir_all(dir).at("make", dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).at("make", dir)
}

/// A drop-in with `Environment=` lines, quoted as systemd.syntax(7) and systemd.unit(5) ask for.
fn environment_drop_in(environment: &[(String, String)]) -> String {
    let mut text = String::from("[Service]\n");
    for (name, value) in environment {
        text += &format!("Environment=\"{name}={}\"\n", quoted(value));
    }
    text
}

/// Escapes a value for a double-quoted string: C escapes, and `%` doubled against specifiers.
fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            '%' => out += "%%",
            c if c.is_control() => {
                out += &c
                    .to_string()
                    .bytes()
                    .map(|b| format!("\\x{b:02x}"))
                    .collect::<String>()
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rootfs;
    use crate::unit::UnitFile;

    fn config(units: &[&str], network: Network) -> MachineConfig {
        let mut builder =
            MachineConfig::builder("web".parse().unwrap(), Rootfs::Host).network(network);
        for name in units {
            let text = "[Service]\nExecStart=/bin/true\n";
            builder = builder.unit(UnitFile::new(name.parse().unwrap(), text).unwrap());
        }
        builder.environment("A", "50% \"x\"\n").build().unwrap()
    }

    fn paths(dir: &UnitDir) -> Vec<&str> {
        dir.entries().map(|(path, _)| path).collect()
    }

    #[test]
    fn units_are_wanted_and_get_their_environment() {
        let plan = UnitDir::plan(&config(&["web.service", "b.timer"], Network::Veth));
        let find = |name: &str| {
            plan.entries()
                .find(|(path, _)| *path == name)
                .map(|(_, entry)| entry.clone())
        };
        assert_eq!(
            find("multi-user.target.d/wants.conf"),
            Some(Entry::File("[Unit]\nWants=web.service b.timer\n".into()))
        );
        assert_eq!(
            find("web.service.d/50-environment.conf"),
            Some(Entry::File(
                "[Service]\nEnvironment=\"A=50%% \\\"x\\\"\\n\"\n".into()
            ))
        );
        assert_eq!(find("b.timer.d/50-environment.conf"), None);
    }

    #[test]
    fn waiting_for_a_link_is_masked_only_without_one() {
        let wait = "systemd-networkd-wait-online.service";
        assert!(!paths(&UnitDir::plan(&config(&[], Network::Veth))).contains(&wait));
        for network in [Network::Host, Network::None] {
            assert!(paths(&UnitDir::plan(&config(&[], network))).contains(&wait));
        }
    }

    #[test]
    fn a_unit_of_the_user_is_never_masked_by_us() {
        let plan = UnitDir::plan(&config(&["console-getty.service"], Network::None));
        let found: Vec<_> = plan
            .entries()
            .filter(|(path, _)| *path == "console-getty.service")
            .collect();
        assert!(matches!(found[..], [(_, Entry::File(_))]), "{found:?}");
    }

    #[test]
    fn the_folder_holds_files_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("systemd");
        UnitDir::plan(&config(&["web.service"], Network::None))
            .write(&target)
            .unwrap();
        assert_eq!(
            fs::read_link(target.join("systemd-firstboot.service")).unwrap(),
            Path::new("/dev/null")
        );
        assert!(
            fs::read_to_string(target.join("web.service"))
                .unwrap()
                .starts_with("[Service]")
        );
    }
}
