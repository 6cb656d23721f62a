//! `nspawn-run image remove`

use clap::Args;
use nspawn_core::{Host, Phase};
use nspawn_image::ImageName;

use crate::error::{CommandError, Kind};
use crate::options::Global;

/// Remove images from the store; one that a machine uses stays
#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// The images
    #[arg(value_name = "NAME", required = true)]
    names: Vec<ImageName>,
}

/// Runs the command.
pub(crate) fn run(args: &RemoveArgs, global: &Global) -> Result<(), CommandError> {
    let store = global.store()?;
    // a detached machine outlives the lock of the command that started it
    let machines = Host::detect_with(global.dirs()?)
        .and_then(|host| host.machines())
        .unwrap_or_default();
    for name in &args.names {
        let stored = store.list()?.into_iter().find(|image| image.name == *name);
        let base = stored.map(|image| image.path.display().to_string());
        let user = machines
            .iter()
            .find(|record| record.phase != Phase::Ended && Some(&record.base) == base.as_ref());
        if let Some(record) = user {
            let message = format!("image {name} is in use by machine {}", record.name);
            return Err(CommandError::new(Kind::Failure, message)
                .hint(format!("stop it first: nspawn-run stop {}", record.name)));
        }
        store.remove(name)?;
    }
    Ok(())
}
