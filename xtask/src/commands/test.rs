//! `cargo xtask test`: every check there is, in the order of their cost; the tests themselves come last.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{bench, fixture, fuzz, setup};
use crate::console;
use crate::error::{PathContext as _, Result, TaskError};
use crate::process;
use crate::programs::Purpose;
use crate::root;
use crate::tally;
use crate::workspace;

/// What ends a hung step where nobody sits at a terminal to do so.
const STEP_LIMIT: Duration = Duration::from_secs(25 * 60);
/// What ends a hung example.
const EXAMPLE_LIMIT: Duration = Duration::from_secs(3 * 60);
/// Fuzzing time of each target, in seconds: enough to run the seeds and some ten thousand mutations. Two run at a time.
const FUZZ_SECONDS: u32 = 60;

/// Install what is missing, build the fixtures, and run every check and every test
#[derive(clap::Args, Debug)]
pub(crate) struct TestArgs {
    /// Install without asking (also with CI=true in the environment)
    #[arg(long, short)]
    yes: bool,
    /// Run these steps alone
    #[arg(long, value_name = "STEP")]
    only: Vec<Step>,
    /// Leave these steps out
    #[arg(long, value_name = "STEP")]
    skip: Vec<Step>,
    /// Fuzzing time of each target, in seconds [default: 60, or NSPAWN_FUZZ_SECONDS]
    #[arg(long, value_name = "N")]
    fuzz_seconds: Option<u32>,
    /// Run only the tests whose name holds one of these, and no other step
    filter: Vec<String>,
}

/// One part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// The formatting
    Fmt,
    /// The lints
    Clippy,
    /// The documentation builds without a warning
    Doc,
    /// Licences, banned crates and sources of the dependencies
    Deny,
    /// Everything compiles
    Build,
    /// The examples in the documentation
    Doctest,
    /// The example programs run
    Examples,
    /// The benchmarks run, with small inputs
    Bench,
    /// The fuzz targets, each for a minute
    Fuzz,
    /// The tests, those that boot machines included
    Test,
}

impl Step {
    const ALL: [Self; 10] = [
        Self::Fmt,
        Self::Clippy,
        Self::Doc,
        Self::Deny,
        Self::Build,
        Self::Doctest,
        Self::Examples,
        Self::Bench,
        Self::Fuzz,
        Self::Test,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Doc => "doc",
            Self::Deny => "deny",
            Self::Build => "build",
            Self::Doctest => "doctest",
            Self::Examples => "examples",
            Self::Bench => "bench",
            Self::Fuzz => "fuzz",
            Self::Test => "test",
        }
    }

    fn run(self, args: &TestArgs) -> Result<()> {
        let cargo = |arguments: &[&str]| process::run(workspace::cargo().args(arguments));
        match self {
            Self::Fmt => cargo(&["fmt", "--all", "--check"]),
            Self::Clippy => cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny=warnings",
            ]),
            Self::Doc => process::run(
                workspace::cargo()
                    .args(["doc", "--workspace", "--no-deps"])
                    .env("RUSTDOCFLAGS", "--deny=warnings"),
            ),
            // Not advisories: their database lies behind the network, and a new entry is no fault of a change.
            Self::Deny => cargo(&[
                "deny",
                "--workspace",
                "check",
                "bans",
                "licenses",
                "sources",
            ]),
            Self::Build => cargo(&["build", "--workspace"]),
            Self::Doctest => cargo(&["test", "--workspace", "--doc"]),
            Self::Examples => examples(),
            Self::Bench => bench::run_all(true, &[], |command| {
                process::run(&mut limited(command, STEP_LIMIT))
            }),
            Self::Fuzz => fuzz::run_all(fuzz_seconds(args)?),
            Self::Test => tests(&args.filter),
        }
    }
}

pub(crate) fn run(args: &TestArgs) -> Result<()> {
    root::require("test")?;
    setup::prepare(Purpose::Test, args.yes, "test")?;
    let steps: Vec<Step> = Step::ALL
        .into_iter()
        .filter(|step| args.only.is_empty() || args.only.contains(step))
        .filter(|step| !args.skip.contains(step))
        .filter(|step| args.filter.is_empty() || matches!(step, Step::Build | Step::Test))
        .collect();
    if steps
        .iter()
        .any(|step| matches!(step, Step::Examples | Step::Bench | Step::Test))
    {
        fixture::ensure_all()?;
    }
    for step in steps {
        let start = Instant::now();
        console::step(step.name(), "");
        step.run(args)
            .map_err(|error| error.within(&format!("the step {} failed", step.name())))?;
        if step != Step::Test {
            console::line(format_args!(
                "    {}: {:.0} s",
                step.name(),
                start.elapsed().as_secs_f64()
            ));
        }
    }
    Ok(())
}

fn fuzz_seconds(args: &TestArgs) -> Result<u32> {
    match (args.fuzz_seconds, std::env::var("NSPAWN_FUZZ_SECONDS")) {
        (Some(seconds), _) => Ok(seconds),
        (None, Ok(text)) => text
            .parse()
            .map_err(|_| TaskError::failed(format!("NSPAWN_FUZZ_SECONDS is no number: {text:?}"))),
        (None, Err(_)) => Ok(FUZZ_SECONDS),
    }
}

/// Runs all tests with the runner that comes with cargo.
///
/// Not cargo-nextest: a fresh machine would compile it for longer than the tests take. What it would add is had
/// otherwise: test executables run one after another, the support library ends what hangs and orders the tests that
/// look at the whole host, and the totals are added up here.
fn tests(filter: &[String]) -> Result<()> {
    // What killed tests of an earlier run left on the disk.
    let state = workspace::target_dir()?.join("test-state");
    if filter.is_empty() && state.exists() {
        std::fs::remove_dir_all(&state).at("remove", &state)?;
    }
    // Tests that boot machines wait more than they compute, but memory and loop devices are finite.
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 4));
    let mut command = workspace::cargo();
    command
        .args([
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
            "--",
        ])
        .args(["--include-ignored", &format!("--test-threads={threads}")])
        .args(filter);
    tally::run(&mut limited(&command, STEP_LIMIT))
}

/// Runs every program of the package of examples, in the order of their names; each must end by itself, with code 0.
fn examples() -> Result<()> {
    process::run(workspace::cargo().args([
        "build",
        "--package=nspawn-examples",
        "--bins",
        "--examples",
    ]))?;
    for (kind, name) in workspace::programs_of("nspawn-examples")? {
        let mut command = workspace::cargo();
        command.args([
            "run",
            "--quiet",
            "--package=nspawn-examples",
            &format!("--{kind}={name}"),
        ]);
        process::run(&mut limited(&command, EXAMPLE_LIMIT))?;
    }
    Ok(())
}

/// The command below `timeout`, which ends its whole process group; itself where a terminal has Ctrl-C for that.
fn limited(command: &Command, limit: Duration) -> Command {
    let mut outer;
    if std::io::stdin().is_terminal() {
        outer = Command::new(command.get_program());
    } else {
        outer = Command::new("timeout");
        outer
            .args(["--kill-after=30", &limit.as_secs().to_string()])
            .arg(command.get_program());
    }
    outer.args(command.get_args());
    let dir = command
        .get_current_dir()
        .map_or_else(PathBuf::new, PathBuf::from);
    if !dir.as_os_str().is_empty() {
        outer.current_dir(dir);
    }
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    outer
}
