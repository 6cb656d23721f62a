//! `cargo xtask demo`: from a fresh machine to a unit that ran in a machine of its own.

use std::process::Command;
use std::time::Instant;

use super::setup;
use crate::console;
use crate::error::{Result, TaskError};
use crate::process;
use crate::programs::Purpose;
use crate::root;
use crate::workspace;

/// The unit that is shown, from the workspace's root.
const UNIT: &str = "examples/hello.service";

/// Install what is missing, build, and run a first unit
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArgs {
    /// Install without asking (also with CI=true in the environment)
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    root::require("demo")?;
    setup::prepare(Purpose::Demo, args.yes, "demo")?;

    console::step("build", "nspawn-run, optimised");
    process::run(workspace::cargo().args(["build", "--release", "--package=nspawn-cli"]))?;
    let program = workspace::target_dir()?.join("release/nspawn-run");

    console::step(
        "run",
        format_args!("{UNIT} in a machine made of this host's own /usr"),
    );
    let mut command = Command::new(&program);
    command.current_dir(workspace::root()).args(["unit", UNIT]);
    console::line(format_args!("$ {}", process::shown(&command)));
    let start = Instant::now();
    let status = command
        .status()
        .map_err(|error| process::cannot_run(&command, &error))?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(TaskError::failed(format!(
            "the unit ended with {status} after {seconds:.1} s"
        ))
        .hint(format!(
            "ask what this host lacks: {} doctor",
            program.display()
        )));
    }

    console::step(
        "result",
        format_args!("the unit ended with exit code 0; {seconds:.1} s from start to end"),
    );
    let program = program.display();
    console::line(format_args!("next:"));
    console::line(format_args!(
        "  {program} unit web.service --image https://…/disk.qcow2   a unit of yours in a cloud image"
    ));
    console::line(format_args!(
        "  {program} --help                                         everything else"
    ));
    Ok(())
}
