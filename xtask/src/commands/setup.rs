//! `cargo xtask setup`: installs what this machine lacks, and says so first.

use std::process::Command;

use crate::console;
use crate::error::{Result, TaskError};
use crate::packages::Manager;
use crate::process;
use crate::programs::{self, Program, Purpose};
use crate::root;
use crate::workspace;

/// Install what this machine lacks
#[derive(clap::Args, Debug)]
pub(crate) struct SetupArgs {
    /// Install without asking (also with CI=true in the environment)
    #[arg(long, short)]
    yes: bool,
    /// What the machine is prepared for
    #[arg(long = "for", value_name = "PURPOSE", default_value = "test")]
    purpose: Purpose,
}

pub(crate) fn run(args: &SetupArgs) -> Result<()> {
    prepare(
        args.purpose,
        args.yes,
        &format!("setup --for {}", name(args.purpose)),
    )?;
    console::line("this machine has all that is needed");
    Ok(())
}

/// Installs the programs, and for tests the cargo tools, that are missing.
///
/// `task` is what the user typed after `cargo xtask`, for the hint.
pub(crate) fn prepare(purpose: Purpose, yes: bool, task: &str) -> Result<()> {
    let missing: Vec<&Program> = programs::needed(purpose)
        .into_iter()
        .filter(|program| !program.is_present())
        .collect();
    let tools = match purpose {
        Purpose::Demo => Vec::new(),
        Purpose::Test => CARGO_TOOLS
            .iter()
            .filter(|tool| !tool.is_present())
            .collect(),
    };
    let components = match purpose {
        Purpose::Demo => Vec::new(),
        Purpose::Test => missing_components(),
    };
    if missing.is_empty() && tools.is_empty() && components.is_empty() {
        return Ok(());
    }
    console::step("set-up", "this machine lacks a few programs");
    let manager = if missing.is_empty() {
        None
    } else {
        Some(manager_for(&missing)?)
    };
    let mut packages: Vec<&str> = manager
        .map(|manager| {
            missing
                .iter()
                .map(|program| program.package(manager))
                .collect()
        })
        .unwrap_or_default();
    packages.sort_unstable();
    packages.dedup();
    if let Some(manager) = manager {
        console::line(format_args!(
            "  to install with {}: {}",
            manager.program(),
            packages.join(" ")
        ));
    }
    for tool in &tools {
        console::line(format_args!("  to build with cargo install: {}", tool.name));
    }
    if !components.is_empty() {
        console::line(format_args!(
            "  to add with rustup: {}",
            components.join(" ")
        ));
    }
    if manager.is_some() && !root::is_root() {
        root::require(task)?;
    }
    agree(yes, task)?;
    if let Some(manager) = manager {
        if let Some(mut update) = manager.update() {
            process::run(&mut update)?;
        }
        process::run(&mut manager.install(&packages))?;
    }
    if !components.is_empty() {
        process::run(
            Command::new("rustup")
                .args(["component", "add"])
                .args(&components),
        )?;
    }
    for tool in tools {
        process::run(&mut tool.install())?;
    }
    still_missing(purpose)
}

/// Parts of the toolchain that its smallest profile lacks.
fn missing_components() -> Vec<&'static str> {
    [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(subcommand, _)| !has_subcommand(subcommand))
        .map(|(_, component)| component)
        .collect()
}

/// Asks cargo, which looks in its own folder of programs as well as in `PATH`.
fn has_subcommand(name: &str) -> bool {
    let asked = workspace::cargo().args([name, "--version"]).output();
    asked.is_ok_and(|output| output.status.success())
}

/// A tool that comes from the package registry of cargo.
#[derive(Debug)]
struct CargoTool {
    name: &'static str,
    arguments: &'static [&'static str],
}

/// cargo-nextest is not among them: a runner that every machine has serves us as well, see `test.rs`.
const CARGO_TOOLS: &[CargoTool] = &[
    // Without default features: they are what its check of advisories needs, which fetches a database; we do not run it.
    CargoTool {
        name: "cargo-deny",
        arguments: &["--no-default-features"],
    },
    CargoTool {
        name: "cargo-fuzz",
        arguments: &[],
    },
];

impl CargoTool {
    fn is_present(&self) -> bool {
        has_subcommand(self.name.trim_start_matches("cargo-"))
    }

    fn install(&self) -> Command {
        let mut command = workspace::cargo();
        command
            .args(["install", "--locked", "--quiet"])
            .args(self.arguments)
            .arg(self.name);
        command
    }
}

fn manager_for(missing: &[&Program]) -> Result<Manager> {
    Manager::detect().ok_or_else(|| {
        let names: Vec<&str> = missing.iter().map(|program| program.names[0]).collect();
        let known = Manager::ALL.map(Manager::program).join(", ");
        TaskError::host(format!(
            "missing on this machine: {}; and none of {known} is here to install it",
            names.join(", ")
        ))
        .hint("install these programs by hand, then run the command again")
    })
}

fn agree(yes: bool, task: &str) -> Result<()> {
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
    if yes || in_ci {
        return Ok(());
    }
    match console::confirm("Install them now?") {
        Some(true) => Ok(()),
        Some(false) => Err(TaskError::host("nothing was installed")),
        None => Err(
            TaskError::host("there is no terminal to ask on, so nothing was installed").hint(
                format!("to agree beforehand, type: cargo xtask {task} --yes"),
            ),
        ),
    }
}

fn still_missing(purpose: Purpose) -> Result<()> {
    let names: Vec<&str> = programs::needed(purpose)
        .into_iter()
        .filter(|program| !program.is_present())
        .map(|program| program.names[0])
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(TaskError::host(format!(
        "still missing after the installation: {}",
        names.join(", ")
    )))
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Demo => "demo",
        Purpose::Test => "test",
    }
}
