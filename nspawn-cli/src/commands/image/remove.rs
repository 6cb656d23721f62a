//! `nspawn-run image remove`

use clap::Args;
use nspawn_image::ImageName;

use crate::error::{CommandError, Kind};
use crate::options::Global;

/// Remove images from the store; one that a machine uses stays
///
/// An image is in use while a machine runs from it, and while changes are kept of a machine that was made from it.
///
/// Example: nspawn-run image remove debian-12
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
    let bases = nspawn_core::bases_in_use(&global.dirs()?)?;
    for name in &args.names {
        let stored = store.list()?.into_iter().find(|image| image.name == *name);
        let base = stored.map(|image| image.path.display().to_string());
        let user = bases.iter().find(|(_, used)| Some(used) == base.as_ref());
        if let Some((machine, _)) = user {
            let message = format!("image {name} is in use by machine {machine}");
            return Err(CommandError::new(Kind::Failure, message).hint(format!(
                "stop it, and remove what is kept of it: nspawn-run stop {machine}; nspawn-run remove {machine}"
            )));
        }
        store.remove(name)?;
    }
    Ok(())
}
