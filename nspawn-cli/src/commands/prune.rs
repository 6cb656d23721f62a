//! `nspawn-run prune`

use clap::Args;

use crate::error::CommandError;
use crate::options::Global;
use crate::output::Output;

/// Clear up after machines whose processes were killed
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {}

/// Runs the command.
pub(crate) fn run(_: &PruneArgs, global: &Global, out: &mut Output) -> Result<(), CommandError> {
    for name in global.host()?.prune()? {
        out.text(&format!("{name}\n"))?;
    }
    Ok(())
}
