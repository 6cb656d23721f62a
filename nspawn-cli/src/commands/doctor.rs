//! `nspawn-run doctor`

use clap::Args;
use nspawn_core::Host;

use crate::error::{CommandError, Kind};
use crate::options::{Format, FormatArg, Global};
use crate::output::Output;

/// Say whether this host can run machines, and what to do where it cannot
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Runs the command.
pub(crate) fn run(args: &DoctorArgs, _: &Global, out: &mut Output) -> Result<(), CommandError> {
    let checks = Host::examine();
    match args.format.format {
        Format::Json => {
            let rows: Vec<serde_json::Value> = checks
                .iter()
                .map(|check| {
                    let problem = check.problem.as_ref();
                    serde_json::json!({
                        "check": check.name,
                        "found": check.found,
                        "fatal": problem.is_some_and(|problem| problem.fatal),
                        "hint": problem.map(|problem| &problem.hint),
                    })
                })
                .collect();
            out.json(&rows)?;
        }
        Format::Table => {
            for check in &checks {
                let mark = match &check.problem {
                    None => "ok",
                    Some(problem) if problem.fatal => "FAILED",
                    Some(_) => "limited",
                };
                out.text(&format!("{mark:<8} {}: {}\n", check.name, check.found))?;
                if let Some(problem) = &check.problem {
                    out.text(&format!("         hint: {}\n", problem.hint))?;
                }
            }
        }
    }
    if checks
        .iter()
        .filter_map(|check| check.problem.as_ref())
        .any(|problem| problem.fatal)
    {
        return Err(CommandError::new(
            Kind::Host,
            "this host cannot run machines",
        ));
    }
    Ok(())
}
