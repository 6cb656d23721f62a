//! The command line: the list of commands, and what becomes of their results.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::commands;
use crate::error::CommandError;
use crate::options::Global;
use crate::output::Output;

/// Run a systemd unit in a system image
///
/// A plain unit file and a plain cloud image become a running unit: the image is downloaded, verified and
/// converted, systemd boots in systemd-nspawn with the unit on its unit path, and the unit's own result is the
/// exit status.
#[derive(Parser, Debug)]
#[command(name = "nspawn-run", version, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 done, 1 failed, 2 usage, 3 this host cannot. `unit`, `exec`, `shell` and \
`wait` pass the payload's own status on and use 125 for their own failure."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Unit(Box<commands::unit::UnitArgs>),
    #[command(visible_alias = "ls")]
    List(commands::list::ListArgs),
    Status(commands::status::StatusArgs),
    Logs(commands::logs::LogsArgs),
    Exec(commands::exec::ExecArgs),
    Shell(commands::shell::ShellArgs),
    Stop(commands::stop::StopArgs),
    Kill(commands::kill::KillArgs),
    Wait(commands::wait::WaitArgs),
    #[command(visible_alias = "rm")]
    Remove(commands::remove::RemoveArgs),
    Prune(commands::prune::PruneArgs),
    Image(commands::image::ImageArgs),
    Doctor(commands::doctor::DoctorArgs),
    Explain(Box<commands::explain::ExplainArgs>),
    Completions(commands::completions::CompletionsArgs),
    #[command(hide = true)]
    Manual(commands::manual::ManualArgs),
    #[command(hide = true)]
    Monitor(commands::monitor::MonitorArgs),
}

impl Cli {
    /// Runs the command and reports its error.
    pub(crate) fn run(self) -> ExitCode {
        let Self { global, command } = self;
        let out = &mut Output::stdout();
        // commands that pass a payload's status on must not be mistaken for it
        let passes_on = matches!(
            command,
            Command::Unit(_) | Command::Exec(_) | Command::Shell(_) | Command::Wait(_)
        );
        let done = |result: Result<(), CommandError>| result.map(|()| 0);
        let result = match command {
            Command::Unit(args) => commands::unit::run(&args, &global),
            Command::List(args) => done(commands::list::run(&args, &global, out)),
            Command::Status(args) => commands::status::run(&args, &global, out),
            Command::Logs(args) => commands::logs::run(&args, &global, out),
            Command::Exec(args) => commands::exec::run(&args, &global),
            Command::Shell(args) => commands::shell::run(&args, &global),
            Command::Stop(args) => done(commands::stop::run(&args, &global)),
            Command::Kill(args) => done(commands::kill::run(&args, &global)),
            Command::Wait(args) => commands::wait::run(&args, &global),
            Command::Remove(args) => done(commands::remove::run(&args, &global)),
            Command::Prune(args) => done(commands::prune::run(&args, &global, out)),
            Command::Image(args) => done(commands::image::run(&args, &global, out)),
            Command::Doctor(args) => done(commands::doctor::run(&args, &global, out)),
            Command::Explain(args) => done(commands::explain::run(&args, &global, out)),
            Command::Completions(args) => {
                done(commands::completions::run(&args, Self::command(), out))
            }
            Command::Manual(args) => done(commands::manual::run(&args, Self::command())),
            Command::Monitor(args) => commands::monitor::run(&args, &global),
        };
        match result {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                error.print();
                ExitCode::from(error.exit_status(passes_on))
            }
        }
    }
}
