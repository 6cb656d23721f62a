//! `cargo xtask bench`: the benchmarks, against the peers in the same run, and one table of all their rows.

use std::fs;

use super::{fixture, setup};
use crate::console;
use crate::error::{PathContext as _, Result, TaskError};
use crate::process;
use crate::programs::Purpose;
use crate::root;
use crate::workspace;

/// Run the benchmarks, and write one table with the ratios to the peers
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
    run_all(args.quick, &args.filter, process::run)
}

/// Runs them through `start`, and writes the table of what was compared.
pub(crate) fn run_all(
    quick: bool,
    filter: &[String],
    start: impl FnOnce(&mut std::process::Command) -> Result<()>,
) -> Result<()> {
    let target = workspace::target_dir()?;
    fs::create_dir_all(&target).at("create", &target)?;
    let rows = target.join("bench-rows.jsonl");
    if rows.exists() {
        fs::remove_file(&rows).at("remove", &rows)?;
    }
    let mut command = command(quick, filter);
    start(command.env("NSPAWN_BENCH_ROWS", &rows))?;
    let text = match fs::read_to_string(&rows) {
        Ok(text) => text,
        // Nothing that compares was asked for.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).at("read", &rows),
    };
    let path = target.join("bench.md");
    let table = table(&text)?;
    fs::write(&path, &table).at("write", &path)?;
    console::line(format_args!("\n{table}\nwritten to {}", path.display()));
    Ok(())
}

/// `cargo bench` over the package of benchmarks.
fn command(quick: bool, filter: &[String]) -> std::process::Command {
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

/// The rows as one table in Markdown.
fn table(rows: &str) -> Result<String> {
    let mut lines = vec![
        "| What | Size | Peer | Ours, s | Peer, s | Ratio | On disk | CPU | MiB, ours / peer | Goals |".to_owned(),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |".to_owned(),
    ];
    for row in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(row)
            .map_err(|error| TaskError::failed(format!("a row of the benches: {error}: {row}")))?;
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str, digits: usize| {
            let value = row[key].as_f64();
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let theirs = match number("theirs", 3) {
            absent if absent == "-" => "fails".to_owned(),
            seconds => seconds,
        };
        let cells = [
            text("name"),
            text("size"),
            text("peer"),
            number("ours", 3),
            theirs,
            number("ended", 2),
            number("on_disk", 2),
            number("cpu", 2),
            format!("{} / {}", number("memory", 0), number("their_memory", 0)),
            text("goals"),
        ];
        lines.push(format!("| {} |", cells.join(" | ")));
    }
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_what_was_measured_and_what_failed() {
        let rows = concat!(
            r#"{"name":"convert/zlib","size":"1 GiB","peer":"qemu-img","ours":0.5,"theirs":2.0,"ended":0.25,"#,
            r#""on_disk":0.2,"cpu":0.3,"memory":14.2,"their_memory":27.0,"goals":"ratio <= 0.30 met"}"#,
            "\n",
            r#"{"name":"convert/zstd","size":"1 GiB","peer":"qcow2-rs","ours":0.5,"theirs":null,"goals":""}"#,
        );
        let table = table(rows).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[2..],
            [
                "| convert/zlib | 1 GiB | qemu-img | 0.500 | 2.000 | 0.25 | 0.20 | 0.30 | 14 / 27 | ratio <= 0.30 met |",
                "| convert/zstd | 1 GiB | qcow2-rs | 0.500 | fails | - | - | - | - / - |  |",
            ]
        );
        assert!(super::table("{").is_err());
    }
}
