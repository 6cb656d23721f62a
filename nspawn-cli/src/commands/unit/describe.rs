//! The options that describe a machine, and the description they make.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use nspawn_core::{
    Bind, ConfigError, MachineConfig, MachineError, MachineName, Network, Rootfs, UnitFile,
    UnitName, UserNamespace,
};

use nspawn_image::ImageRef;

use crate::error::{CommandError, Kind};

/// What the machine is to be.
#[derive(Args, Clone, Debug)]
pub(crate) struct MachineArgs {
    /// The machine's name; made of the first unit's by default
    #[arg(long, short, value_name = "NAME")]
    name: Option<MachineName>,
    /// How the machine is connected
    #[arg(long, value_enum, default_value_t = NetworkArg::Veth)]
    network: NetworkArg,
    /// Keep changes to the root file system for the next start under this name
    #[arg(long)]
    persist: bool,
    /// Whether the machine's users are other users than the host's
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = UsersArg::Auto)]
    private_users: UsersArg,
    /// Set an environment variable of the units; NAME alone takes this command's own
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Show a file or folder of the host in the machine
    #[arg(long, value_name = "HOST[:MACHINE]")]
    bind: Vec<String>,
    /// The same, read-only
    #[arg(long, value_name = "HOST[:MACHINE]")]
    bind_ro: Vec<String>,
    /// Keep a unit of the image from starting
    #[arg(long, value_name = "UNIT")]
    mask: Vec<UnitName>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NetworkArg {
    /// The host's own interfaces
    Host,
    /// A loopback interface alone
    None,
    /// A link of its own to the host, with IPv4 and IPv6 addresses
    Veth,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UsersArg {
    /// Yes where the image's file system can, else no with a note
    Auto,
    /// Yes, or an error
    Yes,
    /// No: root in the machine is root on the host
    No,
}

impl MachineArgs {
    /// Reads the unit files and describes the machine, as far as that does not depend on what is in the image.
    pub(crate) fn describe(
        &self,
        files: &[PathBuf],
        image: &ImageRef,
    ) -> Result<MachineConfig, CommandError> {
        let units = files
            .iter()
            .map(|file| load(file))
            .collect::<Result<Vec<_>, _>>()?;
        let name = match (&self.name, units.first()) {
            (Some(name), _) => name.clone(),
            (None, Some(unit)) => MachineName::derive(unit.name().stem()).ok_or_else(|| {
                let message = format!("no machine name can be made of {}", unit.name());
                CommandError::new(Kind::Usage, message).hint("give one with --name")
            })?,
            (None, None) => return Err(CommandError::new(Kind::Usage, "no unit file was given")),
        };
        let mut builder = MachineConfig::builder(name, Rootfs::Host)
            .network(match self.network {
                NetworkArg::Host => Network::Host,
                NetworkArg::None => Network::None,
                NetworkArg::Veth => Network::Veth,
            })
            .user_namespace(match self.private_users {
                UsersArg::Auto => UserNamespace::Auto,
                UsersArg::Yes => UserNamespace::Yes,
                UsersArg::No => UserNamespace::No,
            });
        if *image != ImageRef::Host {
            builder = builder.label(image.to_string());
        }
        for unit in units {
            builder = builder.unit(unit);
        }
        for unit in &self.mask {
            builder = builder.mask(unit.clone());
        }
        for variable in &self.env {
            let (name, value) = environment(variable)?;
            builder = builder.environment(name, value);
        }
        for (texts, read_only) in [(&self.bind, false), (&self.bind_ro, true)] {
            for text in texts {
                builder = builder.bind(bind(text, read_only)?);
            }
        }
        builder.build().map_err(refused)
    }

    /// The same machine, made from `rootfs`.
    pub(crate) fn made_from(
        &self,
        config: &MachineConfig,
        rootfs: Rootfs,
    ) -> Result<MachineConfig, CommandError> {
        let mut spec = config.spec().clone();
        spec.rootfs = rootfs;
        spec.persist = self.persist;
        spec.try_into().map_err(refused)
    }
}

/// Says what to do about a description that contradicts itself.
fn refused(error: ConfigError) -> CommandError {
    let hint = match &error {
        ConfigError::Template(unit, example) => Some(format!("give {example} in place of {unit}")),
        ConfigError::PersistHost => Some("give an --image, or leave --persist out".into()),
        _ => None,
    };
    let command_error = CommandError::new(Kind::Usage, error.to_string());
    hint.into_iter().fold(command_error, CommandError::hint)
}

fn load(file: &Path) -> Result<UnitFile, CommandError> {
    UnitFile::load(file).map_err(|error| {
        let kind = if matches!(error, MachineError::Path { .. }) {
            Some(Kind::Usage)
        } else {
            None
        };
        let hint = error.hint();
        match (kind, error) {
            (Some(kind), MachineError::Path { path, source, .. }) => {
                let message = format!("cannot read the unit file {}", path.display());
                let command_error = CommandError::new(kind, message).because(source);
                hint.into_iter().fold(command_error, CommandError::hint)
            }
            (_, error) => error.into(),
        }
    })
}

fn environment(text: &str) -> Result<(String, String), CommandError> {
    if let Some((name, value)) = text.split_once('=') {
        return Ok((name.to_owned(), value.to_owned()));
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(error) => {
            let message = format!("--env {text}: the variable has no value here");
            Err(CommandError::new(Kind::Usage, message)
                .because(error)
                .hint("write --env NAME=VALUE"))
        }
    }
}

/// Reads `HOST[:MACHINE]`; a relative host path is taken from the current folder.
fn bind(text: &str, read_only: bool) -> Result<Bind, CommandError> {
    let (host, guest) = match text.split_once(':') {
        Some((host, guest)) => (host, guest),
        None => (text, text),
    };
    let failed =
        |error| CommandError::new(Kind::Usage, format!("cannot bind {host}")).because(error);
    let host_path = std::fs::canonicalize(host).map_err(failed)?;
    let guest_path = if guest == host {
        host_path.clone()
    } else {
        PathBuf::from(guest)
    };
    Ok(Bind {
        host_path,
        guest_path,
        read_only,
    })
}
