//! `nspawn-run kill`

use clap::Args;
use nix::sys::signal::Signal;
use nspawn_core::UnitName;

use crate::error::CommandError;
use crate::options::{Global, NameArg};

/// Kill a machine at once, or send a signal to one of its units
#[derive(Args, Debug)]
pub(crate) struct KillArgs {
    #[command(flatten)]
    name: NameArg,
    /// The unit whose processes get the signal
    #[arg(long, short, value_name = "UNIT")]
    unit: Option<UnitName>,
    /// The signal, by name or number
    #[arg(long, short, value_name = "SIGNAL", default_value = "KILL", value_parser = signal, requires = "unit")]
    signal: i32,
}

fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err("a signal's number is 1 to 64".into())
        };
    }
    let name = text.to_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    name.parse::<Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| "no signal has this name; see signal(7)".into())
}

/// Runs the command.
pub(crate) fn run(args: &KillArgs, global: &Global) -> Result<(), CommandError> {
    let machine = global.host()?.machine(&args.name.name)?;
    match &args.unit {
        Some(unit) => machine.kill_unit(unit, args.signal)?,
        None => machine.kill()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let table = [
            ("9", Some(9)),
            ("term", Some(15)),
            ("SIGHUP", Some(1)),
            ("0", None),
            ("99", None),
            ("x", None),
        ];
        for (text, number) in table {
            assert_eq!(signal(text).ok(), number, "{text}");
        }
    }
}
