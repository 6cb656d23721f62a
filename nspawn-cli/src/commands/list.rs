//! `nspawn-run list`

use clap::Args;
use nspawn_core::{Host, MachineError, Phase, Record};

use crate::error::CommandError;
use crate::options::{Format, FormatArg, Global};
use crate::output::{Output, age, now};

/// List machines, running and ended
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    format: FormatArg,
    /// Only the names of machines that run
    #[arg(long, conflicts_with = "format")]
    names: bool,
}

/// Runs the command.
pub(crate) fn run(args: &ListArgs, global: &Global, out: &mut Output) -> Result<(), CommandError> {
    let host = global.host()?;
    let records = host.machines()?;
    if args.names {
        let running = records
            .iter()
            .filter(|record| matches!(state(&host, record).as_str(), "starting" | "running"));
        return out.text(
            &running
                .map(|record| format!("{}\n", record.name))
                .collect::<String>(),
        );
    }
    match args.format.format {
        Format::Json => out.json(&records),
        Format::Table => {
            let rows: Vec<Vec<String>> = records.iter().map(|record| row(&host, record)).collect();
            out.table(
                &["NAME", "STATE", "SINCE", "UNITS", "ADDRESS", "IMAGE"],
                &rows,
            )
        }
    }
}

fn row(host: &Host, record: &Record) -> Vec<String> {
    let units: Vec<&str> = record.units.iter().map(|unit| unit.as_str()).collect();
    let since = record
        .outcome
        .as_ref()
        .map_or(record.started_at, |outcome| outcome.ended_at);
    vec![
        record.name.to_string(),
        state(host, record),
        age(now().saturating_sub(since)),
        units.join(" "),
        record
            .addresses
            .as_ref()
            .map_or_else(|| "-".into(), |addresses| addresses.guest_v4.to_string()),
        record.label.clone(),
    ]
}

/// The state in a word: `running`, `starting`, `ended (7)`, or `lost` where its owner was killed.
pub(crate) fn state(host: &Host, record: &Record) -> String {
    match (&record.outcome, record.phase) {
        (Some(outcome), Phase::Ended) => format!("ended ({})", outcome.status),
        _ if !record.owner.is_alive() => match host.machine(&record.name) {
            Err(MachineError::Gone { .. } | MachineError::NoMachine { .. }) => "lost".into(),
            _ => "running".into(),
        },
        (_, Phase::Starting) => "starting".into(),
        _ => "running".into(),
    }
}
