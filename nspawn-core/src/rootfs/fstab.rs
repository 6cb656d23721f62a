//! What an image's own fstab(5) says of the subvolumes of its root file system. Pure: text in, places out.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

/// What a btrfs is called by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uuid: [u8; 16],
    /// Empty where it has none.
    pub(super) label: String,
}

/// A subvolume and its place in the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subvolume {
    /// Its place, relative to the root; plain names alone.
    pub(super) place: PathBuf,
    /// The mount option that names it.
    pub(super) option: String,
    /// Whether a machine does without it where it is not there.
    pub(super) may_fail: bool,
}

/// Folders that are the machine's own, whatever stands in the image.
const OWN_PLACES: [&str; 4] = ["dev", "proc", "run", "sys"];

impl Identity {
    /// Whether the first field of a line means this file system.
    fn is_meant_by(&self, spec: &str) -> bool {
        let hex: String = self.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let uuid = |text: &str| text.replace('-', "").eq_ignore_ascii_case(&hex);
        let label = |text: &str| !self.label.is_empty() && text == self.label;
        let after = |start: &str| spec.strip_prefix(start).map(|text| text.trim_matches('"'));
        after("UUID=").is_some_and(uuid)
            || after("/dev/disk/by-uuid/").is_some_and(uuid)
            || after("LABEL=").is_some_and(label)
            || after("/dev/disk/by-label/").is_some_and(label)
    }
}

impl Subvolume {
    /// A name for folders of ours: letters and digits of the place, other bytes as `_` and two hexadecimal digits.
    pub(super) fn file_name(&self) -> String {
        let bytes = self.place.as_os_str().as_encoded_bytes();
        let mut name = String::new();
        for byte in bytes {
            if byte.is_ascii_alphanumeric() {
                name.push(char::from(*byte));
            } else {
                name += &format!("_{byte:02x}");
            }
        }
        name
    }
}

/// The subvolumes of the file system `root` that belong at other places than the root, parents first.
///
/// Lines about other file systems, and lines that make no sense, are passed over.
pub(super) fn subvolumes(text: &str, root: &Identity) -> Vec<Subvolume> {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|fields: &Vec<&str>| fields.len() >= 4 && !fields[0].starts_with('#'))
        .collect();
    // the root may be named by its partition, which is nothing the file system knows
    let root_spec = lines
        .iter()
        .find(|fields| fields[1] == "/")
        .map(|fields| fields[0]);
    let mut found: Vec<Subvolume> = Vec::new();
    for fields in &lines {
        let (spec, kind, options) = (fields[0], fields[2], fields[3]);
        let is_ours = Some(spec) == root_spec || root.is_meant_by(spec);
        let options: Vec<&str> = options.split(',').collect();
        let named = |start: &&&str| start.starts_with("subvol=") || start.starts_with("subvolid=");
        let (Some(place), Some(option)) = (place(fields[1]), options.iter().find(named)) else {
            continue;
        };
        if !is_ours || !["btrfs", "auto"].contains(&kind) || options.contains(&"noauto") {
            continue;
        }
        if found.iter().any(|other| other.place == place) {
            continue;
        }
        found.push(Subvolume {
            place,
            option: unescape(option).to_string_lossy().into_owned(),
            may_fail: options.contains(&"nofail"),
        });
    }
    found.sort_by_key(|subvolume| subvolume.place.components().count());
    found
}

/// The second field of a line as a path relative to the root, where it is one below it.
fn place(field: &str) -> Option<PathBuf> {
    let path = PathBuf::from(unescape(field));
    let relative = path.strip_prefix("/").ok()?;
    let is_plain = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let is_own = OWN_PLACES.iter().any(|own| relative.starts_with(own));
    if relative == Path::new("") || !is_plain || is_own {
        return None;
    }
    Some(relative.components().collect())
}

/// Undoes the octal escapes for spaces and the like. Source: getmntent(3).
fn unescape(field: &str) -> OsString {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Identity {
        Identity {
            uuid: *b"\x2b\x1c\x3d\x4e\x5f\x60\x71\x82\x93\xa4\xb5\xc6\xd7\xe8\xf9\x0a",
            label: "fedora".into(),
        }
    }

    fn found(text: &str) -> Vec<(String, String, bool)> {
        subvolumes(text, &root())
            .into_iter()
            .map(|s| (s.place.display().to_string(), s.option, s.may_fail))
            .collect()
    }

    fn one(place: &str, option: &str, may_fail: bool) -> (String, String, bool) {
        (place.to_owned(), option.to_owned(), may_fail)
    }

    #[test]
    fn subvolumes_of_the_root_and_no_others() {
        let fedora = "\
# a comment
UUID=2b1c3d4e-5f60-7182-93a4-b5c6d7e8f90a /      btrfs compress=zstd:1,defaults,subvol=root 0 0
UUID=1111-2222                            /boot/efi vfat defaults,umask=0077 0 2
UUID=2B1C3D4E-5F60-7182-93A4-B5C6D7E8F90A /var/lib/x btrfs compress=zstd:1,subvolid=300,nofail 0 0
UUID=2b1c3d4e-5f60-7182-93a4-b5c6d7e8f90a /home  btrfs compress=zstd:1,subvol=home 0 0
UUID=2b1c3d4e-5f60-7182-93a4-b5c6d7e8f90a /var/  btrfs compress=zstd:1,subvol=/var 0 0
UUID=aaaaaaaa-5f60-7182-93a4-b5c6d7e8f90a /srv   btrfs subvol=srv 0 0
";
        let expected = [
            one("home", "subvol=home", false),
            one("var", "subvol=/var", false),
            one("var/lib/x", "subvolid=300", true),
        ];
        assert_eq!(found(fedora), expected);
    }

    #[test]
    fn a_root_is_named_in_many_ways() {
        for spec in [
            "LABEL=fedora",
            "LABEL=\"fedora\"",
            "/dev/disk/by-label/fedora",
            "UUID=\"2b1c3d4e-5f60-7182-93a4-b5c6d7e8f90a\"",
            "/dev/disk/by-uuid/2b1c3d4e-5f60-7182-93a4-b5c6d7e8f90a",
        ] {
            let text = format!("{spec} /home btrfs subvol=@home 0 0\n");
            assert_eq!(found(&text), [one("home", "subvol=@home", false)], "{spec}");
        }
        let by_partition = "/dev/vda2 / btrfs subvol=@ 0 0\n/dev/vda2 /home auto subvol=@home\n";
        assert_eq!(found(by_partition), [one("home", "subvol=@home", false)]);
        assert_eq!(found("/dev/vda2 /home btrfs subvol=@home 0 0"), []);
    }

    #[test]
    fn what_makes_no_sense_is_passed_over() {
        for line in [
            "LABEL=fedora /home btrfs",
            "LABEL=fedora /home btrfs defaults 0 0",
            "LABEL=fedora /home ext4 subvol=home 0 0",
            "LABEL=fedora /home btrfs noauto,subvol=home 0 0",
            "LABEL=fedora none btrfs subvol=home 0 0",
            "LABEL=fedora / btrfs subvol=root 0 0",
            "LABEL=fedora /../home btrfs subvol=home 0 0",
            "LABEL=fedora /a\\057..\\057..\\057b btrfs subvol=home 0 0",
            "LABEL=fedora /proc/x btrfs subvol=home 0 0",
            "#LABEL=fedora /home btrfs subvol=home 0 0",
        ] {
            assert_eq!(found(line), [], "{line}");
        }
        let escaped = "LABEL=fedora /a\\040b btrfs subvol=a\\040b 0 0\nLABEL=fedora /a\\040b btrfs subvol=c 0 0";
        assert_eq!(found(escaped), [one("a b", "subvol=a b", false)]);
    }

    #[test]
    fn names_of_folders_are_plain_and_differ() {
        let name = |place: &str| {
            Subvolume {
                place: place.into(),
                option: String::new(),
                may_fail: false,
            }
            .file_name()
        };
        assert_eq!(name("var/lib"), "var_2flib");
        assert_eq!(name("var-lib"), "var_2dlib");
        assert_eq!(name("var_2flib"), "var_5f2flib");
    }
}
