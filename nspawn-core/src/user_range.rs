//! The range of host users that a machine's users are mapped to.

use std::io;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};

use crate::error::{MachineError, PathContext as _, SystemContext as _};
use crate::name::MachineName;
use crate::process::placeholder;
use crate::sys;

/// Users in a machine's range. Source: systemd docs/UIDS-GIDS: a range is 64 Ki long and so aligned.
const LENGTH: u32 = 0x1_0000;

/// First and last base that systemd-nspawn picks from. Source: systemd docs/UIDS-GIDS.
const BASES: std::ops::RangeInclusive<u32> = 0x0008_0000..=0x6FFF_0000;

/// A range of 65536 host users and groups, from [`base`](Self::base) on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserRange {
    base: u32,
}

impl UserRange {
    /// The host user that is root in the machine.
    #[must_use]
    pub fn base(self) -> u32 {
        self.base
    }

    /// Users in the range.
    #[must_use]
    pub fn length(self) -> u32 {
        LENGTH
    }

    /// Picks a range for a machine: always the same one for a name, unless it is taken.
    ///
    /// `taken` says which bases other machines have; ranges with a user or group of the host are passed over.
    pub(crate) fn pick(name: &MachineName, taken: &[UserRange]) -> Self {
        let slots = (BASES.end() - BASES.start()) / LENGTH + 1;
        let first = u32::try_from(fnv1a(name.as_str().as_bytes()) % u64::from(slots)).unwrap_or(0);
        let candidates = (0..slots).map(|step| Self {
            base: BASES.start() + (first + step) % slots * LENGTH,
        });
        let of_the_host = |range: &Self| {
            User::from_uid(Uid::from_raw(range.base)).is_ok_and(|user| user.is_some())
                || Group::from_gid(Gid::from_raw(range.base)).is_ok_and(|group| group.is_some())
        };
        // 28 thousand ranges are not all taken; the last resort shares one rather than fail
        candidates
            .clone()
            .find(|range| !taken.contains(range) && !of_the_host(range))
            .or_else(|| candidates.clone().next())
            .unwrap_or(Self {
                base: *BASES.start(),
            })
    }

    /// Makes a user namespace that maps the range, for an id-mapped mount.
    ///
    /// # Errors
    ///
    /// What the kernel says, such as `ENOSPC` where `user.max_user_namespaces` is reached.
    pub(crate) fn namespace(self) -> Result<OwnedFd, MachineError> {
        // the namespace needs a process that lives until it is opened: one that waits for its input to end
        let mut command = placeholder();
        sys::in_new_user_namespace(&mut command);
        let mut holder = command.spawn().map_err(|source| MachineError::NoIdMap {
            what: "the kernel makes none".into(),
            source,
        })?;
        let opened = self.map_and_open(holder.id());
        drop(holder.stdin.take().map(|mut stdin| stdin.flush()));
        holder.wait().doing("make a user namespace")?;
        opened
    }

    fn map_and_open(self, pid: u32) -> Result<OwnedFd, MachineError> {
        let proc = std::path::Path::new("/proc").join(pid.to_string());
        for map in ["uid_map", "gid_map"] {
            let path = proc.join(map);
            std::fs::write(&path, format!("0 {} {LENGTH}", self.base)).at("write", &path)?;
        }
        let path = proc.join("ns/user");
        let file: Result<_, io::Error> = std::fs::File::open(&path);
        Ok(file.at("open", &path)?.into())
    }
}

/// A hash that stays the same between builds and versions. Source: RFC 9923, FNV-1a, 64 bits.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_range_unless_it_is_taken() {
        let name: MachineName = "web".parse().unwrap();
        let first = UserRange::pick(&name, &[]);
        assert_eq!(first, UserRange::pick(&name, &[]));
        assert!(BASES.contains(&first.base()) && first.base().is_multiple_of(LENGTH));
        let second = UserRange::pick(&name, &[first]);
        assert_ne!(first, second);
    }

    #[test]
    fn the_hash_is_the_standard_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
