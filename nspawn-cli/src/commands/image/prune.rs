//! `nspawn-run image prune`

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use nspawn_image::{PruneOptions, PruneReport, StoredImage};

use super::amount;
use crate::error::CommandError;
use crate::options::{Format, FormatArg, Global};
use crate::output::{Output, age, size};
use crate::progress::Progress;

/// Remove images that nothing uses, and what interrupted pulls left
///
/// Without --keep, --older-than or --max-size, only what no name leads to goes: images without a name, downloads that
/// nobody went on with for a day, leftovers. With more than one of them, an image goes where all of them say so; the
/// longest unused goes first. What a machine uses stays, and so does what was pulled within the last minute.
///
/// Example: nspawn-run image prune --older-than 30d --keep 2
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// Remove images, but for this many of those used last
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Remove images that were not used for so long, such as 12h, 30d or 2w
    #[arg(long, value_name = "AGE", value_parser = amount::age)]
    older_than: Option<Duration>,
    /// Remove images until the rest takes no more than this, such as 500M or 20G
    #[arg(long, value_name = "SIZE", value_parser = amount::bytes)]
    max_size: Option<u64>,
    /// Remove every unfinished download that nobody works on, however new
    #[arg(long)]
    partial: bool,
    /// Remove what was pulled within the last minute too
    #[arg(long)]
    recent: bool,
    /// Remove nothing, and say what would be
    #[arg(long, short = 'n')]
    dry_run: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// Runs the command.
pub(crate) fn run(args: &PruneArgs, global: &Global, out: &mut Output) -> Result<(), CommandError> {
    let mut options = PruneOptions::default();
    options.keep = args.keep;
    options.older_than = args.older_than;
    options.max_size = args.max_size;
    options.partial = args.partial;
    options.dry_run = args.dry_run;
    if args.recent {
        options.spare = Duration::ZERO;
    }
    // a detached machine outlives the lock of the command that started it
    let bases = nspawn_core::bases_in_use(&global.dirs()?)?;
    options.in_use = bases
        .into_iter()
        .map(|(_, base)| PathBuf::from(base))
        .collect();
    let store = global.store()?;
    let report = store.prune(&options, &mut Progress::new(global.quiet))?;
    match args.format.format {
        Format::Json => out.json(&json(&report, args.dry_run)),
        Format::Table => out.text(&text(&report, args)),
    }
}

fn text(report: &PruneReport, args: &PruneArgs) -> String {
    let (verb, freed) = match args.dry_run {
        true => ("would remove", "would free"),
        false => ("removed", "freed"),
    };
    let mut text = String::new();
    for removed in &report.removed {
        let (kind, name) = (removed.kind.as_str(), &removed.name);
        text += &format!("{verb} {kind} {name} ({})\n", size(removed.bytes));
    }
    text += &match report.removed.is_empty() {
        true => "nothing to remove\n".to_owned(),
        false => format!("{freed} {}\n", size(report.freed())),
    };
    let asked = args.keep.is_some() || args.older_than.is_some() || args.max_size.is_some();
    if asked || report.unused.is_empty() {
        return text;
    }
    text += "not in use, and could go with --keep, --older-than or --max-size:\n";
    for image in &report.unused {
        let (name, used) = (&image.name, age(idle(image)));
        text += &format!(
            "  {name} ({}, last used {used} ago)\n",
            size(image.disk_usage)
        );
    }
    text
}

/// Seconds since an image was used.
fn idle(image: &StoredImage) -> u64 {
    SystemTime::now()
        .duration_since(image.last_used)
        .unwrap_or_default()
        .as_secs()
}

fn json(report: &PruneReport, dry_run: bool) -> serde_json::Value {
    let removed: Vec<_> = report
        .removed
        .iter()
        .map(|removed| {
            serde_json::json!({
                "kind": removed.kind.as_str(),
                "name": removed.name,
                "bytes": removed.bytes,
            })
        })
        .collect();
    let unused: Vec<_> = report
        .unused
        .iter()
        .map(|image| {
            serde_json::json!({
                "name": image.name.to_string(),
                "bytes": image.disk_usage,
                "unused_seconds": idle(image),
            })
        })
        .collect();
    serde_json::json!({
        "dry_run": dry_run,
        "removed": removed,
        "freed": report.freed(),
        "unused": unused,
    })
}
