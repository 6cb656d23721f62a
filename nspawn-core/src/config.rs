//! What a machine is to be: the raw [`MachineSpec`] and the checked [`MachineConfig`].

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::name::{MachineName, MachineNameError, UnitName};
use crate::unit::UnitFile;

/// What the root file system of a machine is made from.
///
/// It is never written to: changes go to an overlay or a tmpfs on top.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Rootfs {
    /// The host's own `/usr`, read-only, in an otherwise empty root in memory.
    Host,
    /// A folder that holds an OS tree.
    Directory {
        /// The folder.
        path: PathBuf,
    },
    /// A file system inside a raw image file.
    Disk {
        /// The image file.
        image: PathBuf,
        /// Where the file system begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: u64,
        /// Its type, as mount(8) names it.
        filesystem: String,
    },
}

impl Rootfs {
    /// The base in words: what a kept machine must be started from again.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Host => "the host's /usr".into(),
            Self::Directory { path } => path.display().to_string(),
            Self::Disk { image, .. } => image.display().to_string(),
        }
    }
}

/// How a machine is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Network {
    /// The host's own interfaces.
    Host,
    /// A loopback interface alone.
    None,
    /// A link of its own to the host, addressed before the units start.
    #[default]
    Veth,
}

/// Whether the machine's users are other users than the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum UserNamespace {
    /// Yes, where the host and the base's file system can; else no, with a notice.
    #[default]
    Auto,
    /// Yes, or an error.
    Yes,
    /// No: root in the machine is root on the host.
    No,
}

/// A file or folder of the host shown inside the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host.
    pub host_path: PathBuf,
    /// Absolute path in the machine.
    pub guest_path: PathBuf,
    /// Whether the machine may only read it.
    pub read_only: bool,
}

/// A machine as asked for; nothing in it is checked yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Machine name.
    pub name: String,
    /// What the root file system is made from.
    pub rootfs: Rootfs,
    /// What people call that, such as the image's URL; its path where this is empty.
    pub label: String,
    /// Whether changes to the root file system outlive the machine.
    pub persist: bool,
    /// Units to start.
    pub units: Vec<UnitFile>,
    /// Units of the image that must not start.
    pub masks: Vec<UnitName>,
    /// Environment of the units, by drop-in; never on a command line.
    pub environment: Vec<(String, String)>,
    /// Files and folders of the host.
    pub binds: Vec<Bind>,
    /// How the machine is connected.
    pub network: Network,
    /// Whether users are mapped.
    pub user_namespace: UserNamespace,
}

/// Why a [`MachineSpec`] is no machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The name is none.
    #[error("{name:?} is no machine name")]
    Name {
        /// The name.
        name: String,
        /// What it lacks.
        #[source]
        source: MachineNameError,
    },
    /// Two unit files of one name.
    #[error("two unit files are named {0}")]
    TwoUnits(UnitName),
    /// A template that was not given an instance.
    #[error("{0} is a template: it needs an instance, such as {1}")]
    Template(UnitName, String),
    /// A unit is both started and masked.
    #[error("{0} is to be started and masked")]
    Masked(UnitName),
    /// A path that must be absolute.
    #[error("{0:?} is not an absolute path without '..'")]
    NotAbsolute(PathBuf),
    /// A bind over a folder that the machine needs.
    #[error("{0:?} cannot be covered by a bind: the machine needs it")]
    Reserved(PathBuf),
    /// Two binds at one place.
    #[error("two binds go to {0:?}")]
    TwoBinds(PathBuf),
    /// A text that cannot be an environment variable.
    #[error(
        "{0:?} is no environment variable name: letters, digits and '_', not beginning with a digit"
    )]
    Variable(String),
    /// A value that cannot be an environment variable's.
    #[error("the value of {0} holds a NUL byte")]
    Value(String),
    /// A disk that is none.
    #[error("the root file system in {0:?} has no length or no type")]
    Disk(PathBuf),
    /// The host's /usr has nothing to keep.
    #[error("a machine made from the host's /usr keeps nothing: its root is in memory")]
    PersistHost,
}

/// A checked [`MachineSpec`]: the only way to one is [`TryFrom`] or the [builder](Self::builder).
#[derive(Clone, Debug)]
pub struct MachineConfig {
    name: MachineName,
    spec: MachineSpec,
}

impl MachineConfig {
    /// Starts a description with the defaults: ephemeral, veth, mapped users where possible.
    #[must_use]
    pub fn builder(name: MachineName, rootfs: Rootfs) -> MachineBuilder {
        MachineBuilder {
            spec: MachineSpec {
                name: name.as_str().to_owned(),
                label: rootfs.describe(),
                rootfs,
                persist: false,
                units: Vec::new(),
                masks: Vec::new(),
                environment: Vec::new(),
                binds: Vec::new(),
                network: Network::default(),
                user_namespace: UserNamespace::default(),
            },
        }
    }

    /// Machine name.
    #[must_use]
    pub fn name(&self) -> &MachineName {
        &self.name
    }

    /// The checked description.
    #[must_use]
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// The units that are to be started.
    pub fn unit_names(&self) -> impl Iterator<Item = &UnitName> {
        self.spec.units.iter().map(UnitFile::name)
    }
}

/// Collects a [`MachineSpec`] step by step.
#[derive(Clone, Debug)]
pub struct MachineBuilder {
    spec: MachineSpec,
}

impl MachineBuilder {
    /// Adds a unit to start.
    #[must_use]
    pub fn unit(mut self, unit: UnitFile) -> Self {
        self.spec.units.push(unit);
        self
    }

    /// Adds a unit of the image that must not start.
    #[must_use]
    pub fn mask(mut self, unit: UnitName) -> Self {
        self.spec.masks.push(unit);
        self
    }

    /// Sets how the machine is connected.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.spec.network = network;
        self
    }

    /// Sets whether users are mapped.
    #[must_use]
    pub fn user_namespace(mut self, user_namespace: UserNamespace) -> Self {
        self.spec.user_namespace = user_namespace;
        self
    }

    /// Keeps changes to the root file system for the next start under this name.
    #[must_use]
    pub fn persist(mut self, persist: bool) -> Self {
        self.spec.persist = persist;
        self
    }

    /// Sets what people call the image; shown in listings.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.spec.label = label.into();
        self
    }

    /// Adds an environment variable of the units.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.environment.push((name.into(), value.into()));
        self
    }

    /// Shows a file or folder of the host in the machine.
    #[must_use]
    pub fn bind(mut self, bind: Bind) -> Self {
        self.spec.binds.push(bind);
        self
    }

    /// Checks the description.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn build(self) -> Result<MachineConfig, ConfigError> {
        self.spec.try_into()
    }
}

/// Guest folders that a bind would break the boot by covering.
const RESERVED: [&str; 9] = [
    "/",
    "/usr",
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/local",
    "/local/systemd",
    "/run/systemd",
];

impl TryFrom<MachineSpec> for MachineConfig {
    type Error = ConfigError;

    fn try_from(spec: MachineSpec) -> Result<Self, ConfigError> {
        let name: MachineName = spec.name.parse().map_err(|source| ConfigError::Name {
            name: spec.name.clone(),
            source,
        })?;
        check_units(&spec)?;
        check_rootfs(&spec)?;
        let mut guest_paths = HashSet::new();
        for bind in &spec.binds {
            check_absolute(&bind.host_path)?;
            check_absolute(&bind.guest_path)?;
            if RESERVED
                .iter()
                .any(|reserved| bind.guest_path == Path::new(reserved))
            {
                return Err(ConfigError::Reserved(bind.guest_path.clone()));
            }
            if !guest_paths.insert(&bind.guest_path) {
                return Err(ConfigError::TwoBinds(bind.guest_path.clone()));
            }
        }
        for (variable, value) in &spec.environment {
            let good = !variable.is_empty()
                && !variable.starts_with(|c: char| c.is_ascii_digit())
                && variable
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !good {
                return Err(ConfigError::Variable(variable.clone()));
            }
            if value.contains('\0') {
                return Err(ConfigError::Value(variable.clone()));
            }
        }
        Ok(Self { name, spec })
    }
}

fn check_units(spec: &MachineSpec) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for unit in &spec.units {
        if unit.name().is_template() {
            let example = unit
                .name()
                .instance("1")
                .map(|n| n.to_string())
                .unwrap_or_default();
            return Err(ConfigError::Template(unit.name().clone(), example));
        }
        if !seen.insert(unit.name()) {
            return Err(ConfigError::TwoUnits(unit.name().clone()));
        }
        let other_text = |other: &&UnitFile| {
            other.file_name() == unit.file_name() && other.text() != unit.text()
        };
        if spec.units.iter().any(|other| other_text(&other)) {
            return Err(ConfigError::TwoUnits(unit.file_name().clone()));
        }
        if spec.masks.contains(unit.name()) {
            return Err(ConfigError::Masked(unit.name().clone()));
        }
    }
    Ok(())
}

fn check_rootfs(spec: &MachineSpec) -> Result<(), ConfigError> {
    match &spec.rootfs {
        Rootfs::Host if spec.persist => Err(ConfigError::PersistHost),
        Rootfs::Host => Ok(()),
        Rootfs::Directory { path } => check_absolute(path),
        Rootfs::Disk {
            image, length: 0, ..
        } => Err(ConfigError::Disk(image.clone())),
        Rootfs::Disk {
            image, filesystem, ..
        } if filesystem.is_empty() => Err(ConfigError::Disk(image.clone())),
        Rootfs::Disk { image, .. } => check_absolute(image),
    }
}

fn check_absolute(path: &Path) -> Result<(), ConfigError> {
    let climbs = path
        .components()
        .any(|c| matches!(c, std::path::Component::ParentDir));
    if path.is_absolute() && !climbs {
        Ok(())
    } else {
        Err(ConfigError::NotAbsolute(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> UnitFile {
        UnitFile::new(name.parse().unwrap(), "[Service]\nExecStart=/bin/true\n").unwrap()
    }

    fn base() -> MachineBuilder {
        MachineConfig::builder("web".parse().unwrap(), Rootfs::Host)
    }

    fn bind(guest: &str) -> Bind {
        Bind {
            host_path: "/srv".into(),
            guest_path: guest.into(),
            read_only: false,
        }
    }

    #[test]
    fn contradictions_are_named() {
        let web: UnitName = "web.service".parse().unwrap();
        let other = UnitFile::new(web.clone(), "[Service]\nExecStart=/bin/false\n").unwrap();
        let disk = Rootfs::Disk {
            image: "/a".into(),
            offset: 0,
            length: 0,
            filesystem: "ext4".into(),
        };
        let table: Vec<(MachineBuilder, Option<ConfigError>)> = vec![
            (base().unit(unit("web.service")), None),
            (
                base().unit(unit("web.service")).unit(unit("web.service")),
                Some(ConfigError::TwoUnits(web.clone())),
            ),
            (
                base().unit(unit("web.service")).unit(other),
                Some(ConfigError::TwoUnits(web.clone())),
            ),
            (
                base().unit(unit("web.service")).mask(web.clone()),
                Some(ConfigError::Masked(web)),
            ),
            (
                base().unit(unit("web@.service")),
                Some(ConfigError::Template(
                    "web@.service".parse().unwrap(),
                    "web@1.service".into(),
                )),
            ),
            (
                base().bind(bind("srv")),
                Some(ConfigError::NotAbsolute("srv".into())),
            ),
            (
                base().bind(bind("/a/../b")),
                Some(ConfigError::NotAbsolute("/a/../b".into())),
            ),
            (
                base().bind(bind("/usr")),
                Some(ConfigError::Reserved("/usr".into())),
            ),
            (
                base().bind(bind("/a")).bind(bind("/a")),
                Some(ConfigError::TwoBinds("/a".into())),
            ),
            (
                base().environment("1A", "x"),
                Some(ConfigError::Variable("1A".into())),
            ),
            (
                base().environment("A", "\0"),
                Some(ConfigError::Value("A".into())),
            ),
            (base().persist(true), Some(ConfigError::PersistHost)),
            (
                MachineConfig::builder("web".parse().unwrap(), disk),
                Some(ConfigError::Disk("/a".into())),
            ),
        ];
        for (builder, error) in table {
            assert_eq!(builder.clone().build().err(), error, "{builder:?}");
        }
    }
}
