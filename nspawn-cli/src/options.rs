//! Options that commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use nspawn_core::{Dirs, Host, MachineName};
use nspawn_image::Store;

use crate::error::{CommandError, Kind};

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Folder of what outlives a boot: images, changes of kept machines
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/var/lib/nspawn-run",
        help_heading = "Global options"
    )]
    pub(crate) root: PathBuf,
    /// Folder of what does not outlive a boot: running machines
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/run/nspawn-run",
        help_heading = "Global options"
    )]
    pub(crate) run_root: PathBuf,
    /// Say nothing but errors
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
}

impl Global {
    /// The folders as the library takes them.
    pub(crate) fn dirs(&self) -> Result<Dirs, CommandError> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|error| {
                CommandError::new(
                    Kind::Usage,
                    format!("cannot use the folder {}", path.display()),
                )
                .because(error)
            })
        };
        Ok(Dirs {
            state: absolute(&self.root)?,
            run: absolute(&self.run_root)?,
        })
    }

    /// This host, where it can run machines.
    pub(crate) fn host(&self) -> Result<Host, CommandError> {
        Ok(Host::detect_with(self.dirs()?)?)
    }

    /// The image store.
    pub(crate) fn store(&self) -> Result<Store, CommandError> {
        Ok(Store::open(self.dirs()?.state.join("images"))?)
    }
}

/// How a listing is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    #[default]
    Table,
    /// One JSON document
    Json,
}

/// An option that listings share.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct FormatArg {
    /// How to write the result
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// A machine's name as an argument.
#[derive(Args, Clone, Debug)]
pub(crate) struct NameArg {
    /// The machine
    #[arg(value_name = "NAME")]
    pub(crate) name: MachineName,
}
