//! `nspawn-run logs`

use clap::Args;
use nspawn_core::{MachineError, Phase, UnitName};

use crate::commands::exec::code;
use crate::commands::monitor::journal_file;
use crate::error::{CommandError, Kind};
use crate::options::{Global, NameArg};
use crate::output::{Output, last_lines};

/// Show the journal of a machine's units
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    name: NameArg,
    /// Units to show; those the machine was started for by default
    #[arg(long, short, value_name = "UNIT")]
    unit: Vec<UnitName>,
    /// The whole machine's journal
    #[arg(long, short, conflicts_with = "unit")]
    all: bool,
    /// Wait for more
    #[arg(long, short)]
    follow: bool,
    /// Lines to show from the end
    #[arg(long, short = 'n', value_name = "LINES")]
    lines: Option<u32>,
    /// Output format, as journalctl(1) has them
    #[arg(long, short, value_name = "FORMAT", default_value = "short")]
    output: String,
}

/// Runs the command and returns the exit status.
pub(crate) fn run(args: &LogsArgs, global: &Global, out: &mut Output) -> Result<u8, CommandError> {
    let host = global.host()?;
    let record = host.record(&args.name.name)?;
    if record.phase == Phase::Ended {
        let path = journal_file(global, &record.name)?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            CommandError::new(
                Kind::Failure,
                format!("nothing is kept of the journal of machine {}", record.name),
            )
            .because(error)
        })?;
        let shown = args.lines.map_or(usize::MAX, |lines| lines as usize);
        let last = last_lines(&text, shown);
        if !last.is_empty() {
            out.text(&(last + "\n"))?;
        }
        return Ok(0);
    }
    let machine = host.machine(&record.name)?;
    let mut options = vec!["--no-pager".to_owned(), "--boot".into(), "--quiet".into()];
    options.push(format!("--output={}", args.output));
    options.extend(args.lines.map(|lines| format!("--lines={lines}")));
    if args.follow {
        options.push("--follow".into());
        if args.lines.is_none() {
            options.push("--lines=all".into());
        }
    }
    if !args.all {
        let units = if args.unit.is_empty() {
            &record.units
        } else {
            &args.unit
        };
        options.extend(units.iter().map(|unit| format!("--unit={unit}")));
    }
    match machine
        .command("journalctl")
        .args(options)
        .end_with_caller()
        .status()
    {
        Ok(status) => Ok(code(status)),
        Err(error @ MachineError::Exec { .. }) => {
            Err(CommandError::from(error).hint("the image has no journalctl"))
        }
        Err(error) => Err(error.into()),
    }
}
