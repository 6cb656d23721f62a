//! `nspawn-run image verify`

use clap::Args;
use nspawn_image::{Cancel, ErrorKind, ImageError, ImageName, Soundness};
use serde::Serialize;

use crate::error::{CommandError, Kind};
use crate::options::{Format, FormatArg, Global};
use crate::output::Output;
use crate::progress::Progress;
use crate::signals;

/// Check that images in the store are what they were
///
/// Checksums of all that an image holds are taken while it is pulled; every change since is found, and named by its place.
/// They find damage and not intent: who may change the store may change them too. What an image's publisher says of it
/// is checked when it is pulled. Exit status 1 where an image is damaged.
///
/// Example: nspawn-run image verify debian-12
#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// The images [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<ImageName>,
    #[command(flatten)]
    format: FormatArg,
}

/// What was found of one image.
#[derive(Serialize)]
struct Row {
    name: String,
    /// `ok`, `recorded`, `damaged` or `error`.
    state: &'static str,
    /// What is wrong with it.
    reason: Option<String>,
}

/// Runs the command.
pub(crate) fn run(
    args: &VerifyArgs,
    global: &Global,
    out: &mut Output,
) -> Result<(), CommandError> {
    let store = global.store()?;
    let names = match args.names.is_empty() {
        true => store.list()?.into_iter().map(|image| image.name).collect(),
        false => args.names.clone(),
    };
    let cancel = Cancel::default();
    signals::watch(cancel.clone(), |_| {})?;
    let mut rows = Vec::new();
    let mut hints = Vec::new();
    for name in &names {
        let mut progress = Progress::new(global.quiet);
        let row = row(name, store.verify(name, &cancel, &mut progress), &mut hints)?;
        if args.format.format == Format::Table {
            out.text(&match (row.state, &row.reason) {
                (state, Some(reason)) => format!("{name}: {state}: {reason}\n"),
                ("recorded", None) => {
                    format!("{name}: had no checksums; they are kept from now on\n")
                }
                (state, None) => format!("{name}: {state}\n"),
            })?;
        }
        rows.push(row);
    }
    if args.format.format == Format::Json {
        out.json(&rows)?;
    }
    let bad = rows.iter().filter(|row| row.reason.is_some()).count();
    if bad == 0 {
        return Ok(());
    }
    let message = format!("{bad} of {} images cannot be relied on", rows.len());
    let error = CommandError::new(Kind::Failure, message);
    Err(hints.into_iter().fold(error, CommandError::hint))
}

fn row(
    name: &ImageName,
    found: Result<Soundness, ImageError>,
    hints: &mut Vec<String>,
) -> Result<Row, CommandError> {
    let (state, reason) = match found {
        Ok(Soundness::Sound) => ("ok", None),
        Ok(Soundness::Recorded) => ("recorded", None),
        Ok(Soundness::Damaged(damage)) => {
            hints.push(format!(
                "remove it, and pull it again: nspawn-run image remove {name}"
            ));
            ("damaged", Some(damage.to_string()))
        }
        Ok(other) => ("damaged", Some(format!("{other:?}"))),
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            return Err(signals::interrupted().unwrap_or_else(|| error.into()));
        }
        Err(error) => {
            hints.push(match &error {
                ImageError::Missing(_) => {
                    format!("remove the name, and pull it again: nspawn-run image remove {name}")
                }
                other => other.hint().unwrap_or_default(),
            });
            let source = std::error::Error::source(&error);
            let source = source
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            ("error", Some(format!("{error}{source}")))
        }
    };
    hints.retain(|hint| !hint.is_empty());
    hints.dedup();
    Ok(Row {
        name: name.to_string(),
        state,
        reason,
    })
}
