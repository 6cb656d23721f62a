//! `nspawn-run image inspect`

use std::path::PathBuf;

use clap::Args;
use nspawn_image::{
    ImageFormat, ImageRef, InspectOptions, InspectedPartition, Inspection, Os, Scheme, Severity,
};

use crate::error::{CommandError, Kind};
use crate::options::{Format, FormatArg, Global};
use crate::output::{Output, size};

/// Show what is in an image, and what of it will not work here
///
/// Nothing is booted or converted, and a file is read without root: qcow2 images as they are, and the files in ext4.
/// Files in xfs, btrfs, squashfs and erofs are read for root, in raw disks, by a mount that is read-only and that nobody
/// else sees. Of what is packed, only the format is shown.
///
/// Example: nspawn-run image inspect ./debian-12.qcow2
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// A file or folder, a name in the store or in /var/lib/machines, or a URL or oci:NAME that was pulled before
    image: ImageRef,
    /// Open the files below a local qcow2 overlay, where they are in this folder
    #[arg(long, value_name = "DIR")]
    allow_backing: Option<PathBuf>,
    /// Give no file system of the image to the kernel, not even read-only
    #[arg(long)]
    no_mount: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// Runs the command.
pub(crate) fn run(
    args: &InspectArgs,
    global: &Global,
    out: &mut Output,
) -> Result<(), CommandError> {
    let mut options = InspectOptions::default();
    options.allow_backing.clone_from(&args.allow_backing);
    options.mount = !args.no_mount;
    // a file needs no store, and whoever is not root has none
    let located = match &args.image {
        ImageRef::Path(path) => Some((path.clone(), None)),
        other => global
            .store()?
            .locate(other, "/var/lib/machines".as_ref())?,
    };
    let Some((path, _lock)) = located else {
        let message = format!("{} is not in the store", args.image);
        return Err(CommandError::new(Kind::Failure, message).hint(format!(
            "pull it first: nspawn-run image pull {}",
            args.image
        )));
    };
    let found = Inspection::of(&path, &options)?;
    match args.format.format {
        Format::Json => out.json(&json(&found)),
        Format::Table => out.text(&text(&found)),
    }
}

fn text(found: &Inspection) -> String {
    let mut lines: Vec<(&str, String)> = vec![("path", found.path.display().to_string())];
    lines.push(("format", format_line(&found.format)));
    let sizes: Vec<String> = found
        .file_size
        .map(|bytes| format!("{} as a file", size(bytes)))
        .into_iter()
        .chain(
            found
                .virtual_size
                .map(|bytes| format!("{} as a disk", size(bytes))),
        )
        .collect();
    if !sizes.is_empty() {
        lines.push(("size", sizes.join(", ")));
    }
    if let ImageFormat::Qcow2(header, snapshots) = &found.format {
        if let Some(backing) = &header.backing {
            let format = backing.format.as_deref().unwrap_or("no format given");
            lines.push(("lies on", format!("{:?} ({format})", backing.name)));
        }
        for snapshot in snapshots {
            let bytes = snapshot.virtual_size.unwrap_or(header.virtual_size);
            lines.push((
                "snapshot",
                format!("{} {:?}, {}", snapshot.id, snapshot.name, size(bytes)),
            ));
        }
    }
    if let Some(table) = &found.table {
        lines.push(("table", scheme(table.scheme).to_owned()));
    }
    lines.extend(
        found
            .partitions
            .iter()
            .map(|partition| ("partition", partition_line(partition))),
    );
    if let Some(root) = &found.root {
        let place = match root.number {
            Some(number) => format!("partition {number}"),
            None => "the whole disk".to_owned(),
        };
        lines.push(("root", format!("{place}, {}", root.filesystem)));
    }
    if let Some(os) = &found.os {
        lines.extend(os_lines(os));
    }
    lines.extend(found.unread.clone().map(|reason| ("unread", reason)));
    for problem in &found.problems {
        let label = match problem.severity {
            Severity::Fatal => "problem",
            _ => "note",
        };
        lines.push((label, problem.what.clone()));
        lines.extend(problem.hint.clone().map(|hint| ("hint", hint)));
    }
    lines
        .iter()
        .map(|(label, value)| format!("{label:>12}: {value}\n"))
        .collect()
}

fn format_line(format: &ImageFormat) -> String {
    let ImageFormat::Qcow2(header, _) = format else {
        return format.as_str().to_owned();
    };
    let mut line = format!(
        "qcow2 version {}, clusters of {} KiB, {}",
        header.version,
        header.cluster_size() as f64 / 1024.0,
        format!("{:?}", header.compression).to_lowercase()
    );
    if header.extended_l2 {
        line += ", subclusters";
    }
    if header.dirty {
        line += ", not closed in order";
    }
    line
}

fn scheme(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Gpt => "GPT",
        Scheme::GptBackup => "GPT, from the copy at the end",
        Scheme::Mbr => "MBR",
        _ => "none, one file system",
    }
}

fn partition_line(found: &InspectedPartition) -> String {
    let partition = &found.partition;
    let mut line = format!("{} {}", partition.number, partition.kind);
    if !partition.label.is_empty() {
        line += &format!(" {:?}", partition.label);
    }
    line += &format!(", {}", size(partition.length));
    if let Some(content) = &found.content {
        line += &format!(", {content}");
    }
    line
}

fn os_lines(os: &Os) -> Vec<(&'static str, String)> {
    let name = os.name.clone().or(os.id.clone());
    let mut lines = vec![("system", name.unwrap_or_else(|| "unknown".to_owned()))];
    let id = [os.id.as_deref(), os.version.as_deref()];
    let id: Vec<&str> = id.into_iter().flatten().collect();
    if !id.is_empty() {
        lines.push(("id", id.join(" ")));
    }
    lines.extend(
        os.architecture
            .map(|name| ("architecture", name.to_owned())),
    );
    lines.push((
        "init",
        match (os.init, os.systemd) {
            (Some(_), Some(version)) => format!("systemd {version}"),
            (Some(init), None) => init.to_owned(),
            (None, _) => "none".to_owned(),
        },
    ));
    let services = match os.services.is_empty() {
        true => "none of those looked for".to_owned(),
        false => os.services.join(", "),
    };
    lines.push(("enabled", services));
    lines.push(("machine-id", os.machine_id.as_str().to_owned()));
    let merged = if os.merged_usr {
        "merged"
    } else {
        "not merged"
    };
    lines.push(("/usr", merged.to_owned()));
    for entry in &os.fstab {
        lines.push((
            "fstab",
            format!("{} on {} ({})", entry.source, entry.target, entry.kind),
        ));
    }
    lines
}

fn json(found: &Inspection) -> serde_json::Value {
    let partitions: Vec<_> = found
        .partitions
        .iter()
        .map(|found| {
            serde_json::json!({
                "number": found.partition.number,
                "offset": found.partition.offset,
                "size": found.partition.length,
                "type": found.partition.kind.to_string(),
                "label": found.partition.label,
                "content": found.content,
            })
        })
        .collect();
    let root = found.root.as_ref().map(|root| {
        serde_json::json!({
            "partition": root.number,
            "offset": root.offset,
            "size": root.length,
            "file_system": root.filesystem.to_string(),
        })
    });
    let problems: Vec<_> = found
        .problems
        .iter()
        .map(|problem| {
            serde_json::json!({
                "fatal": problem.severity == Severity::Fatal,
                "what": problem.what,
                "hint": problem.hint,
            })
        })
        .collect();
    serde_json::json!({
        "path": found.path,
        "format": found.format.as_str(),
        "qcow2": qcow2_json(&found.format),
        "file_size": found.file_size,
        "virtual_size": found.virtual_size,
        "partitions": partitions,
        "root": root,
        "os": found.os.as_ref().map(os_json),
        "unread": found.unread,
        "problems": problems,
    })
}

fn qcow2_json(format: &ImageFormat) -> Option<serde_json::Value> {
    let ImageFormat::Qcow2(header, snapshots) = format else {
        return None;
    };
    let snapshots: Vec<_> = snapshots
        .iter()
        .map(|snapshot| {
            serde_json::json!({
                "id": snapshot.id,
                "name": snapshot.name,
                "virtual_size": snapshot.virtual_size,
            })
        })
        .collect();
    let backing = header.backing.as_ref().map(|backing| {
        serde_json::json!({
            "name": backing.name,
            "format": backing.format,
        })
    });
    Some(serde_json::json!({
        "version": header.version,
        "cluster_size": header.cluster_size(),
        "compression": format!("{:?}", header.compression).to_lowercase(),
        "extended_l2": header.extended_l2,
        "dirty": header.dirty,
        "backing": backing,
        "snapshots": snapshots,
    }))
}

fn os_json(os: &Os) -> serde_json::Value {
    let fstab: Vec<_> = os
        .fstab
        .iter()
        .map(|entry| {
            serde_json::json!({
                "source": entry.source,
                "target": entry.target,
                "type": entry.kind,
            })
        })
        .collect();
    serde_json::json!({
        "pretty_name": os.name,
        "id": os.id,
        "version_id": os.version,
        "architecture": os.architecture,
        "systemd": os.systemd,
        "init": os.init,
        "enabled": os.services,
        "machine_id": os.machine_id.as_str(),
        "merged_usr": os.merged_usr,
        "fstab": fstab,
    })
}
