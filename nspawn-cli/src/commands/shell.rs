//! `nspawn-run shell`, and programs on a terminal of their own.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read, Write};
use std::os::fd::AsFd as _;

use clap::Args;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nspawn_core::MachineCommand;
use signal_hook::consts::SIGWINCH;
use signal_hook::iterator::Signals;

use crate::cli::{Global, NameArg};
use crate::commands::exec::{code, execute};
use crate::error::{CommandError, Kind};

/// Open a shell in a machine
#[derive(Args, Debug)]
pub(crate) struct ShellArgs {
    #[command(flatten)]
    name: NameArg,
}

/// Runs the command and returns the exit status.
pub(crate) fn run(args: &ShellArgs, global: &Global) -> Result<u8, CommandError> {
    // bash where the machine has it, else what every machine has
    let script = "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi";
    let argv = ["/bin/sh", "-c", script].map(OsString::from);
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".into());
    execute(
        &global.host()?,
        &args.name.name,
        &argv,
        &[("TERM".into(), term)],
        true,
    )
}

/// Puts this terminal back as it was when dropped.
struct RawMode(Termios);

impl RawMode {
    /// Makes this terminal pass every key on; `None` where standard input is none.
    fn enter() -> Option<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

/// Runs a program on a new terminal joined to this command's standard input and output.
pub(crate) fn on_terminal(command: MachineCommand<'_>) -> Result<u8, CommandError> {
    let failed = |what: &'static str| {
        move |error: io::Error| CommandError::new(Kind::Failure, what).because(error)
    };
    let mut started = command.spawn_on_terminal(Some(io::stdin().as_fd()))?;
    let _raw = RawMode::enter();
    if io::stdin().is_terminal() {
        let terminal = started
            .terminal
            .try_clone()
            .map_err(failed("cannot open a terminal"))?;
        let mut resized = Signals::new([SIGWINCH]).map_err(failed("cannot watch for signals"))?;
        std::thread::spawn(move || {
            for _ in resized.forever() {
                let _ = nspawn_core::copy_terminal_size(io::stdin().as_fd(), terminal.as_fd());
            }
        });
    }
    let mut input = started
        .terminal
        .try_clone()
        .map_err(failed("cannot open a terminal"))?;
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut input);
        // end of input is said to a program on a terminal by its end-of-file key
        let _ = input.write_all(&[4]);
    });
    let mut terminal = started
        .terminal
        .try_clone()
        .map_err(failed("cannot open a terminal"))?;
    let mut buffer = [0; 8192];
    // the other end's last closing is an error here, EIO, and means the end
    while let Ok(length @ 1..) = terminal.read(&mut buffer) {
        let mut out = io::stdout().lock();
        if out
            .write_all(&buffer[..length])
            .and_then(|()| out.flush())
            .is_err()
        {
            let _ = started.child.kill();
            break;
        }
    }
    let status = started
        .child
        .wait()
        .map_err(failed("cannot wait for the program"))?;
    Ok(code(status))
}
