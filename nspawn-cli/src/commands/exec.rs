//! `nspawn-run exec`

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use clap::Args;
use nspawn_core::{Host, MachineName};

use crate::commands::shell::on_terminal;
use crate::error::CommandError;
use crate::options::{Global, NameArg};

/// Run a program in a machine, as its root
///
/// Standard input, output and error are the program's, and so is the exit status.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    name: NameArg,
    /// Give the program a terminal of its own
    #[arg(long, short)]
    tty: bool,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// The program and its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<OsString>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "write NAME=VALUE".into())
}

/// Runs the command and returns the exit status.
pub(crate) fn run(args: &ExecArgs, global: &Global) -> Result<u8, CommandError> {
    execute(
        &global.host()?,
        &args.name.name,
        &args.command,
        &args.env,
        args.tty,
    )
}

/// Runs a program in a machine and returns its exit status.
pub(crate) fn execute(
    host: &Host,
    name: &MachineName,
    argv: &[OsString],
    env: &[(String, String)],
    tty: bool,
) -> Result<u8, CommandError> {
    let machine = host.machine(name)?;
    let (program, arguments) = argv
        .split_first()
        .map(|(p, a)| (p.clone(), a))
        .unwrap_or_default();
    let mut command = machine.command(program).args(arguments).end_with_caller();
    for (name, value) in env {
        command = command.env(name, value);
    }
    if tty {
        return on_terminal(command);
    }
    Ok(code(command.status()?))
}

/// The exit status as a shell has it: 128 and the signal where one killed it.
pub(crate) fn code(status: ExitStatus) -> u8 {
    let signalled = || status.signal().map(|signal| 128 + signal);
    status
        .code()
        .or_else(signalled)
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1)
}
