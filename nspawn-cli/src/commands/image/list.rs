//! `nspawn-run image list`

use std::time::SystemTime;

use clap::Args;
use nspawn_image::{ImageKind, StoredImage};

use crate::error::CommandError;
use crate::options::{Format, FormatArg, Global};
use crate::output::{Output, age, size};

/// List the images in the store
///
/// Example: nspawn-run image list --format json
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Runs the command.
pub(crate) fn run(args: &ListArgs, global: &Global, out: &mut Output) -> Result<(), CommandError> {
    let images = global.store()?.list()?;
    match args.format.format {
        Format::Json => {
            let rows: Vec<serde_json::Value> = images.iter().map(json).collect();
            out.json(&rows)
        }
        Format::Table => {
            let rows: Vec<Vec<String>> = images.iter().map(row).collect();
            out.table(
                &["NAME", "KIND", "SIZE", "ON DISK", "AGE", "USED", "SOURCE"],
                &rows,
            )
        }
    }
}

fn kind(image: &StoredImage) -> &'static str {
    match image.kind {
        ImageKind::Disk => "disk",
        _ => "tree",
    }
}

fn row(image: &StoredImage) -> Vec<String> {
    let since = |time| {
        let passed = SystemTime::now().duration_since(time).unwrap_or_default();
        age(passed.as_secs())
    };
    vec![
        image.name.to_string(),
        kind(image).into(),
        size(image.virtual_size),
        size(image.disk_usage),
        since(image.created),
        match image.in_use {
            true => "now".to_owned(),
            false => format!("{} ago", since(image.last_used)),
        },
        image.source.clone(),
    ]
}

fn json(image: &StoredImage) -> serde_json::Value {
    let seconds = |time: SystemTime| {
        let passed = time.duration_since(SystemTime::UNIX_EPOCH);
        passed.unwrap_or_default().as_secs()
    };
    serde_json::json!({
        "name": image.name.to_string(),
        "kind": kind(image),
        "digest": image.digest.to_string(),
        "virtual_size": image.virtual_size,
        "disk_usage": image.disk_usage,
        "created": seconds(image.created),
        "last_used": seconds(image.last_used),
        "in_use": image.in_use,
        "verified": image.verified,
        "source": image.source,
        "path": image.path,
    })
}
