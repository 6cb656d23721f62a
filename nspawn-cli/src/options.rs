//! Options that commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use nspawn_core::{Dirs, Host, MachineName};
use nspawn_image::{ChecksumSource, Digest, PullOptions, Store, Verify};

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

/// What must be known of an image's bytes before they are used.
#[derive(Args, Clone, Debug)]
pub(crate) struct VerifyArgs {
    /// What the image's bytes, or a container image's manifest, must hash to: sha256:HEX or sha512:HEX
    #[arg(long, value_name = "DIGEST")]
    pub(crate) checksum: Option<Digest>,
    /// What must be known of the image's bytes besides --checksum
    ///
    /// Checksum files and signatures are looked for beside the image, under the names that distributions use:
    /// SHA512SUMS, SHA256SUMS, CHECKSUM, IMAGE.sha256 and the like, Fedora's *-CHECKSUM; .gpg, .asc, .sig and .sign of
    /// these or of the image; a clear-signed file needs none
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    verify: VerifyMode,
    /// The publisher's checksum file, a URL or a path, where it does not stand beside the image under a usual name; it
    /// must list the image
    #[arg(long, value_name = "URL|PATH")]
    checksum_file: Option<ChecksumSource>,
    /// A file of OpenPGP public keys that may sign images, binary or armoured; may be given more than once [default:
    /// import-pubring.gpg and .pgp in /etc/systemd and /usr/lib/systemd]
    #[arg(long, value_name = "FILE")]
    keyring: Vec<PathBuf>,
}

/// The library's [`Verify`], with what the help says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum VerifyMode {
    /// Check what the publisher offers, and say where that is nothing
    #[default]
    Auto,
    /// Require a checksum: --checksum or a checksum file
    Checksum,
    /// Require a good signature of a checksum file or of the image
    Signature,
    /// Check nothing but --checksum
    No,
}

impl VerifyArgs {
    /// Sets the library's options.
    pub(crate) fn apply(&self, options: &mut PullOptions) {
        options.checksum = self.checksum;
        options.verify = match self.verify {
            VerifyMode::Auto => Verify::Auto,
            VerifyMode::Checksum => Verify::Checksum,
            VerifyMode::Signature => Verify::Signature,
            VerifyMode::No => Verify::No,
        };
        options.checksum_file.clone_from(&self.checksum_file);
        options.keyrings.clone_from(&self.keyring);
    }

    /// The option that asks for bytes to compare, where one was given.
    pub(crate) fn wants_bytes(&self) -> Option<&'static str> {
        let requires = matches!(self.verify, VerifyMode::Checksum | VerifyMode::Signature);
        if self.checksum.is_some() {
            Some("--checksum")
        } else if self.checksum_file.is_some() {
            Some("--checksum-file")
        } else {
            requires.then_some("--verify")
        }
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
