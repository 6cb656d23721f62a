//! `cargo xtask bench`: the benchmarks, against the peers in the same run.

use super::{fixture, setup};
use crate::error::Result;
use crate::process;
use crate::programs::Purpose;
use crate::root;
use crate::workspace;

/// Run the benchmarks
#[derive(clap::Args, Debug)]
pub(crate) struct BenchArgs {
    /// Install without asking (also with CI=true in the environment)
    #[arg(long, short)]
    yes: bool,
    /// Small inputs and few rounds: does it run, not how fast
    #[arg(long)]
    quick: bool,
    /// Only the benchmarks whose name holds this, and options of the harness
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    filter: Vec<String>,
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    root::require("bench")?;
    setup::prepare(Purpose::Test, args.yes, "bench")?;
    fixture::ensure_all()?;
    process::run(&mut command(args.quick, &args.filter))
}

/// `cargo bench` over the package of benchmarks.
pub(crate) fn command(quick: bool, filter: &[String]) -> std::process::Command {
    let mut command = workspace::cargo();
    command.args(["bench", "--package=nspawn-benches"]);
    if quick {
        command.env("NSPAWN_BENCH_QUICK", "1");
    }
    if !filter.is_empty() {
        command.arg("--").args(filter);
    }
    command
}
