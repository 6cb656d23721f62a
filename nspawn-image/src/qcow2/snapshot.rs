//! The internal snapshots of an image. Source: qcow2.txt, "Snapshots".

use std::time::{Duration, SystemTime};

use super::error::Qcow2Error;
use super::header::Header;
use crate::source::ReadAt;

/// The most extra data of one snapshot, in bytes. Source: QEMU block/qcow2.h, QCOW_MAX_SNAPSHOT_EXTRA_DATA.
const MAX_EXTRA: u32 = 1024;

/// One internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken.
    pub created: SystemTime,
    /// Bytes of memory state kept with it; 0 for a snapshot of the disk alone.
    pub vm_state_size: u64,
    /// Bytes the guest saw; `None` in old images, where it is the active state's.
    pub virtual_size: Option<u64>,
    /// Where its L1 table starts, in bytes.
    pub(super) l1_offset: u64,
    /// Entries in its L1 table.
    pub(super) l1_entries: u32,
}

/// The snapshot with this number or name, the number first, as qemu-img(1) takes it.
pub(super) fn find(snapshots: Vec<Snapshot>, wanted: &str) -> Result<Snapshot, Qcow2Error> {
    let names: Vec<String> = snapshots
        .iter()
        .map(|snapshot| format!("{:?}", snapshot.name))
        .collect();
    let by_name = snapshots
        .iter()
        .position(|snapshot| snapshot.id == wanted)
        .or_else(|| {
            snapshots
                .iter()
                .position(|snapshot| snapshot.name == wanted)
        });
    match by_name.and_then(|index| snapshots.into_iter().nth(index)) {
        Some(snapshot) => Ok(snapshot),
        None => Err(Qcow2Error::NoSnapshot {
            wanted: wanted.to_owned(),
            found: if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            },
        }),
    }
}

pub(super) fn list(
    image: &dyn ReadAt,
    header: &Header,
    length: u64,
) -> Result<Vec<Snapshot>, Qcow2Error> {
    let mut at = header.snapshots_offset;
    let mut found = Vec::new();
    for _ in 0..header.snapshot_count {
        let fixed = read(image, at, 40, length)?;
        let u16_at = |at: usize| usize::from(u16::from_be_bytes([fixed[at], fixed[at + 1]]));
        let u32_at = |at: usize| {
            u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        let (id_length, name_length, extra) = (u16_at(12), u16_at(14), u32_at(36));
        if extra > MAX_EXTRA {
            return Err(Qcow2Error::Field {
                field: "extra_data_size",
                value: extra.into(),
            });
        }
        let extra = extra as usize;
        let rest = read(image, at + 40, extra + id_length + name_length, length)?;
        // The extra data: bytes of memory state, then the virtual size.
        let extra_u64 = |at: usize| {
            let bytes = rest[..extra].get(at..)?.first_chunk::<8>()?;
            Some(u64::from_be_bytes(*bytes))
        };
        let vm_state_size = extra_u64(0).unwrap_or_else(|| u32_at(32).into());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let since = Duration::new(u32_at(16).into(), u32_at(20).min(999_999_999));
        found.push(Snapshot {
            id: text(&rest[extra..extra + id_length]),
            name: text(&rest[extra + id_length..]),
            created: SystemTime::UNIX_EPOCH + since,
            vm_state_size,
            virtual_size: extra_u64(8),
            l1_offset: u64::from(u32_at(0)) << 32 | u64::from(u32_at(4)),
            l1_entries: u32_at(8),
        });
        at += (40 + rest.len() as u64).next_multiple_of(8);
    }
    Ok(found)
}

/// At most 132 KiB: two names of 64 KiB and the extra data.
fn read(image: &dyn ReadAt, at: u64, count: usize, length: u64) -> Result<Vec<u8>, Qcow2Error> {
    let end = at.checked_add(count as u64);
    if end.is_none_or(|end| end > length) {
        return Err(Qcow2Error::Truncated {
            what: "the snapshot table",
            end: at.saturating_add(count as u64),
            length,
        });
    }
    let mut bytes = vec![0; count];
    image
        .read_exact_at(&mut bytes, at)
        .map_err(|source| Qcow2Error::Read { offset: at, source })?;
    Ok(bytes)
}
