//! `nspawn-run status`

use clap::Args;
use nspawn_core::{Machine, Phase, Record, UnitName, UnitState};
use serde::Serialize;

use super::list::state;
use crate::error::CommandError;
use crate::options::{Format, FormatArg, Global, NameArg};
use crate::output::{Output, age, now};

/// Show a machine and its units, or what its systemd says of one unit
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    name: NameArg,
    /// A unit of the machine: the exit status is then that of `systemctl status`
    unit: Option<UnitName>,
    #[command(flatten)]
    format: FormatArg,
}

#[derive(Serialize)]
struct Status<'a> {
    machine: &'a Record,
    state: String,
    units: &'a [UnitState],
}

/// Runs the command and returns the exit status.
pub(crate) fn run(
    args: &StatusArgs,
    global: &Global,
    out: &mut Output,
) -> Result<u8, CommandError> {
    let host = global.host()?;
    let record = host.record(&args.name.name)?;
    if let (Some(unit), Format::Table) = (&args.unit, args.format.format) {
        let machine = host.machine(&args.name.name)?;
        let status = machine
            .command("systemctl")
            .args(["status", "--no-pager", "--full", unit.as_str()])
            .output()?;
        out.text(&String::from_utf8_lossy(&status.stdout))?;
        out.text(&String::from_utf8_lossy(&status.stderr))?;
        return Ok(status
            .status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1));
    }
    let wanted = args
        .unit
        .as_ref()
        .map_or(record.units.as_slice(), std::slice::from_ref);
    let units = match host.machine(&record.name) {
        Ok(machine) if record.phase != Phase::Ended => states(&machine, wanted)?,
        _ => Vec::new(),
    };
    let state = state(&host, &record);
    match args.format.format {
        Format::Json => out.json(&Status {
            machine: &record,
            state,
            units: &units,
        })?,
        Format::Table => out.text(&describe(&record, &state, &units))?,
    }
    Ok(0)
}

fn states(machine: &Machine, units: &[UnitName]) -> Result<Vec<UnitState>, CommandError> {
    Ok(units
        .iter()
        .map(|unit| machine.unit_state(unit))
        .collect::<Result<_, _>>()?)
}

fn describe(record: &Record, state: &str, units: &[UnitState]) -> String {
    let since = |moment: u64| age(now().saturating_sub(moment));
    let mut lines = vec![
        ("machine", record.name.to_string()),
        ("state", state.to_owned()),
    ];
    lines.push(("started", format!("{} ago", since(record.started_at))));
    if let Some(outcome) = &record.outcome {
        lines.push((
            "ended",
            format!("{} ago: {}", since(outcome.ended_at), outcome.reason),
        ));
    }
    lines.push(("image", record.label.clone()));
    if let Some(leader) = record.leader.filter(|_| record.phase != Phase::Ended) {
        lines.push(("leader", format!("PID {}", leader.pid)));
    }
    if let Some(addresses) = &record.addresses {
        lines.push((
            "address",
            format!("{}, {}", addresses.guest_v4, addresses.guest_v6),
        ));
        lines.push((
            "host side",
            format!(
                "{}, {} on {}",
                addresses.host_v4, addresses.host_v6, addresses.link
            ),
        ));
    }
    match record.user_range {
        Some(range) => lines.push((
            "users",
            format!("{} and the {} after it", range.base(), range.length() - 1),
        )),
        None => lines.push(("users", "the host's own".into())),
    }
    lines.push((
        "changes",
        if record.persist {
            "kept"
        } else {
            "thrown away at the end"
        }
        .into(),
    ));
    for unit in units {
        let pid = if unit.main_pid > 0 {
            format!(", PID {} in the machine", unit.main_pid)
        } else {
            String::new()
        };
        lines.push((
            "unit",
            format!(
                "{}: {} ({}){pid}",
                unit.name, unit.active_state, unit.sub_state
            ),
        ));
    }
    lines
        .iter()
        .map(|(label, value)| format!("{label:>9}: {value}\n"))
        .collect()
}
