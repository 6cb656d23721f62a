//! `cargo xtask fuzz`: each fuzz target for a while.

use std::process::Command;

use super::setup;
use crate::console;
use crate::error::{PathContext as _, Result, TaskError};
use crate::process;
use crate::programs::Purpose;
use crate::workspace;

/// Run the fuzz targets, each for a while
#[derive(clap::Args, Debug)]
pub(crate) struct FuzzArgs {
    /// Install without asking (also with CI=true in the environment)
    #[arg(long, short)]
    yes: bool,
    /// Only this target
    target: Option<String>,
    /// Time for each target, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    setup::prepare(Purpose::Test, args.yes, "fuzz")?;
    let targets = targets()?;
    match &args.target {
        None => run_all(args.seconds),
        Some(name) if targets.contains(name) => run_one(name, args.seconds),
        Some(name) => Err(TaskError::failed(format!("there is no fuzz target {name}"))
            .hint(format!("there are: {}", targets.join(", ")))),
    }
}

/// Runs every target for `seconds`.
pub(crate) fn run_all(seconds: u32) -> Result<()> {
    let targets = targets()?;
    if targets.is_empty() {
        console::line("no fuzz targets");
    }
    targets.iter().try_for_each(|name| run_one(name, seconds))
}

/// The targets are the files of `fuzz/fuzz_targets/`, in the order of their names.
fn targets() -> Result<Vec<String>> {
    let dir = workspace::root().join("fuzz/fuzz_targets");
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).at("list", &dir)? {
        let path = entry.at("list", &dir)?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

fn run_one(name: &str, seconds: u32) -> Result<()> {
    console::step("fuzz", format_args!("{name}, {seconds} s"));
    process::run(&mut command(name, seconds)?)
}

/// The compiler that builds everything else builds the fuzz targets too.
///
/// cargo-fuzz passes flags that only a nightly compiler takes of itself; `RUSTC_BOOTSTRAP` makes a stable one take them,
/// and saves a fresh machine the download of a second toolchain. Stable ships the sanitizer's runtime.
fn command(name: &str, seconds: u32) -> Result<Command> {
    // What is found goes into the first folder; the seeds are read alone.
    let fuzz = workspace::root().join("fuzz");
    let (corpus, seeds) = (
        fuzz.join("corpus").join(name),
        fuzz.join("seeds").join(name),
    );
    for dir in [&corpus, &seeds] {
        std::fs::create_dir_all(dir).at("create", dir)?;
    }
    let mut command = workspace::cargo();
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["fuzz", "run", "--target-dir"])
        .arg(workspace::target_dir()?.join("fuzz"))
        .arg(name)
        .args([corpus, seeds])
        .args([
            "--",
            &format!("-max_total_time={seconds}"),
            "-print_final_stats=1",
        ])
        // One input must end in 10 s; the memory limit is libFuzzer's own default, stated.
        .args(["-timeout=10", "-rss_limit_mb=2048"]);
    Ok(command)
}
