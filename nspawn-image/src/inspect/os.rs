//! What a root file system says of the operating system in it.

use std::io;

use super::files::OsFiles;

/// The longest file that is read whole, in bytes.
const MAX_FILE: usize = 1 << 20;
/// The longest dpkg database that is looked through, in bytes.
const MAX_DPKG: usize = 64 << 20;
/// Entries of fstab that are kept, at most.
const MAX_FSTAB: usize = 256;
/// Services looked for, as their units are named, and what people call them.
const SERVICES: [(&str, &str); 6] = [
    ("systemd-networkd.service", "systemd-networkd"),
    ("systemd-resolved.service", "systemd-resolved"),
    ("NetworkManager.service", "NetworkManager"),
    ("networking.service", "ifupdown"),
    ("cloud-init.service", "cloud-init"),
    ("cloud-init-main.service", "cloud-init"),
];

/// What stands in `/etc/machine-id`. Source: machine-id(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MachineId {
    /// No such file: the next boot is the first one.
    Absent,
    /// An empty file: each machine gets an ID.
    Empty,
    /// The word `uninitialized`: the next boot is the first one.
    Uninitialized,
    /// An ID.
    Set,
    /// Something else.
    Invalid,
}

impl MachineId {
    /// Its name: `absent`, `empty`, `uninitialized`, `set` or `invalid`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Empty => "empty",
            Self::Uninitialized => "uninitialized",
            Self::Set => "set",
            Self::Invalid => "invalid",
        }
    }
}

/// A line of `/etc/fstab`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FstabEntry {
    /// A device, `UUID=…`, or a word such as `tmpfs`.
    pub source: String,
    /// Where it is mounted.
    pub target: String,
    /// The file system's type.
    pub kind: String,
}

impl FstabEntry {
    /// Whether it names a device, which a container does not have.
    pub fn is_device(&self) -> bool {
        let prefixes = ["UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID=", "/dev/"];
        prefixes
            .iter()
            .any(|prefix| self.source.starts_with(prefix))
    }
}

/// What a root file system says of its operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Os {
    /// `PRETTY_NAME` of os-release.
    pub name: Option<String>,
    /// `ID` of os-release.
    pub id: Option<String>,
    /// `VERSION_ID` of os-release.
    pub version: Option<String>,
    /// Whether there is an os-release at all.
    pub has_os_release: bool,
    /// What its programs were built for, by the name that systemd gives it, such as `x86-64`.
    pub architecture: Option<&'static str>,
    /// The version of systemd, such as 252.
    pub systemd: Option<u32>,
    /// The path of PID 1.
    pub init: Option<&'static str>,
    /// Whether `/bin` and the like lead into `/usr`.
    pub merged_usr: bool,
    /// What stands in `/etc/machine-id`.
    pub machine_id: MachineId,
    /// Of the services that set up a network or the machine itself, those that are enabled.
    pub services: Vec<String>,
    /// The lines of `/etc/fstab`.
    pub fstab: Vec<FstabEntry>,
}

/// The content of a file, `None` where there is none or it is of another kind.
fn file(files: &dyn OsFiles, path: &str, limit: usize) -> io::Result<Option<Vec<u8>>> {
    match files.read(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::NotADirectory
            ) || error.raw_os_error() == Some(libc::ELOOP) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn text(files: &dyn OsFiles, path: &str) -> io::Result<Option<String>> {
    let bytes = file(files, path, MAX_FILE)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The names in a folder; none where there is no such folder.
fn names(files: &dyn OsFiles, path: &str) -> io::Result<Vec<String>> {
    match files.list(path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(Vec::new())
        }
        other => other,
    }
}

impl Os {
    /// Reads what there is; fails only where the file system itself cannot be read.
    pub(super) fn read(files: &dyn OsFiles) -> io::Result<Self> {
        let mut release = text(files, "etc/os-release")?;
        if release.is_none() {
            release = text(files, "usr/lib/os-release")?;
        }
        let field = |name: &str| {
            release
                .as_deref()
                .and_then(|text| release_field(text, name))
        };
        let init = init(files)?;
        let machine_id = machine_id(files)?;
        Ok(Self {
            name: field("PRETTY_NAME"),
            id: field("ID"),
            version: field("VERSION_ID"),
            has_os_release: release.is_some(),
            architecture: architecture(files, init)?,
            systemd: systemd(files)?,
            init,
            merged_usr: files.read_link("bin").is_ok(),
            services: services(files, machine_id)?,
            machine_id,
            fstab: fstab(&text(files, "etc/fstab")?.unwrap_or_default()),
        })
    }
}

/// A field's value, without quotes and escapes. Source: os-release(5).
fn release_field(text: &str, name: &str) -> Option<String> {
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix('='))?;
    let line = line.trim();
    let quote = line.chars().next().filter(|c| "\"'".contains(*c));
    let inner = match quote {
        Some(quote) => line[1..].strip_suffix(quote).unwrap_or(&line[1..]),
        None => line,
    };
    let mut value = String::new();
    let mut escaped = false;
    for c in inner.chars().filter(|c| !c.is_control()).take(256) {
        if c == '\\' && !escaped && quote != Some('\'') {
            escaped = true;
            continue;
        }
        escaped = false;
        value.push(c);
    }
    (!value.is_empty()).then_some(value)
}

fn init(files: &dyn OsFiles) -> io::Result<Option<&'static str>> {
    // In the order systemd-nspawn tries them. Source: systemd-nspawn(1), --boot.
    for path in [
        "usr/lib/systemd/systemd",
        "lib/systemd/systemd",
        "sbin/init",
    ] {
        if file(files, path, 1)?.is_some() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// What the first program found was built for. Source: elf(5), linux/elf-em.h.
fn architecture(
    files: &dyn OsFiles,
    init: Option<&'static str>,
) -> io::Result<Option<&'static str>> {
    for path in init
        .into_iter()
        .chain(["bin/sh", "usr/bin/sh", "usr/bin/env"])
    {
        let Some(head) = file(files, path, 20)? else {
            continue;
        };
        if head.len() < 20 || !head.starts_with(b"\x7fELF") {
            continue;
        }
        let pair = [head[18], head[19]];
        let (wide, big) = (head[4] == 2, head[5] == 2);
        let machine = if big {
            u16::from_be_bytes(pair)
        } else {
            u16::from_le_bytes(pair)
        };
        return Ok(Some(match (machine, wide, big) {
            (3, ..) => "x86",
            (40, ..) => "arm",
            (62, ..) => "x86-64",
            (183, ..) => "arm64",
            (243, true, _) => "riscv64",
            (243, false, _) => "riscv32",
            (258, true, _) => "loongarch64",
            (21, _, false) => "ppc64-le",
            (21, _, true) => "ppc64",
            (22, true, _) => "s390x",
            (8, ..) => "mips",
            _ => "unknown",
        }));
    }
    Ok(None)
}

/// The version of systemd, by the name of its library, else by dpkg's database.
fn systemd(files: &dyn OsFiles) -> io::Result<Option<u32>> {
    let version = |name: &str| {
        let rest = name.strip_prefix("libsystemd-shared-")?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    };
    let mut folders: Vec<String> = ["usr/lib/systemd", "lib/systemd", "usr/lib64/systemd"]
        .map(str::to_owned)
        .into();
    // Debian's folders of one architecture.
    let multiarch = names(files, "usr/lib")?;
    let multiarch = multiarch.iter().filter(|name| name.contains("-linux-"));
    folders.extend(
        multiarch
            .take(16)
            .map(|name| format!("usr/lib/{name}/systemd")),
    );
    for folder in folders {
        if let Some(found) = names(files, &folder)?.iter().find_map(|name| version(name)) {
            return Ok(Some(found));
        }
    }
    let Some(status) = file(files, "var/lib/dpkg/status", MAX_DPKG)? else {
        return Ok(None);
    };
    let status = String::from_utf8_lossy(&status);
    let mut paragraphs = status.split("\n\n");
    let found = paragraphs.find(|paragraph| paragraph.starts_with("Package: systemd\n"));
    Ok(found.and_then(|paragraph| {
        let line = paragraph
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))?;
        line.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    }))
}

fn machine_id(files: &dyn OsFiles) -> io::Result<MachineId> {
    let Some(bytes) = file(files, "etc/machine-id", 64)? else {
        return Ok(MachineId::Absent);
    };
    let id = bytes.trim_ascii();
    Ok(match id {
        b"" => MachineId::Empty,
        b"uninitialized" => MachineId::Uninitialized,
        id if id.len() == 32 && id.iter().all(u8::is_ascii_hexdigit) => MachineId::Set,
        _ => MachineId::Invalid,
    })
}

/// Which of [`SERVICES`] are started at boot: by a link of the administrator or the vendor, or, where the next boot is
/// the first one, by presets.
fn services(files: &dyn OsFiles, machine_id: MachineId) -> io::Result<Vec<String>> {
    let mut linked = Vec::new();
    for folder in [
        "etc/systemd/system",
        "usr/lib/systemd/system",
        "lib/systemd/system",
    ] {
        let wants = names(files, folder)?;
        for wants in wants
            .iter()
            .filter(|name| name.ends_with(".wants"))
            .take(200)
        {
            linked.extend(names(files, &format!("{folder}/{wants}"))?);
        }
    }
    let first_boot = matches!(machine_id, MachineId::Absent | MachineId::Uninitialized);
    let presets = if first_boot {
        presets(files)?
    } else {
        Vec::new()
    };
    let mut found: Vec<String> = Vec::new();
    for (unit, name) in SERVICES {
        let paths = ["etc", "usr/lib", "lib"].map(|root| format!("{root}/systemd/system/{unit}"));
        let mut exists = false;
        for path in &paths {
            exists |= files.exists(path)?;
        }
        // A link of the administrator to nothing turns a unit off.
        let masked = files
            .read_link(&paths[0])
            .is_ok_and(|target| target == std::path::Path::new("/dev/null"));
        let is_on = linked.iter().any(|link| link == unit)
            || (exists && first_boot && by_preset(&presets, unit));
        if is_on && !masked && !found.iter().any(|other| other == name) {
            found.push(name.to_owned());
        }
    }
    // It is turned on at each boot by a program, unless a file says no. Source: cloud-init, tools/ds-identify.
    let cloud_init = "cloud-init";
    let generators = ["usr/lib", "lib"];
    let mut generated = false;
    for root in generators {
        let path = format!("{root}/systemd/system-generators/cloud-init-generator");
        generated |= file(files, &path, 1)?.is_some();
    }
    let off = files.exists("etc/cloud/cloud-init.disabled")?;
    found.retain(|name| name != cloud_init || !off);
    if generated && !off && !found.iter().any(|name| name == cloud_init) {
        found.push(cloud_init.to_owned());
    }
    Ok(found)
}

/// Lines of presets in the order in which the first that fits counts. Source: systemd.preset(5).
fn presets(files: &dyn OsFiles) -> io::Result<Vec<(bool, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    for folder in ["etc/systemd/system-preset", "usr/lib/systemd/system-preset"] {
        for name in names(files, folder)? {
            if name.ends_with(".preset") && !found.iter().any(|(other, _)| *other == name) {
                found.push((name.clone(), format!("{folder}/{name}")));
            }
        }
    }
    found.sort();
    let mut lines = Vec::new();
    for (_, path) in found.iter().take(200) {
        for line in text(files, path)?.unwrap_or_default().lines() {
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("enable"), Some(unit)) => lines.push((true, unit.to_owned())),
                (Some("disable"), Some(unit)) => lines.push((false, unit.to_owned())),
                _ => {}
            }
        }
    }
    Ok(lines)
}

fn by_preset(presets: &[(bool, String)], unit: &str) -> bool {
    let fits = |pattern: &str| match pattern.split_once('*') {
        Some((start, end)) => {
            unit.len() >= start.len() + end.len() && unit.starts_with(start) && unit.ends_with(end)
        }
        None => pattern == unit,
    };
    presets
        .iter()
        .find(|(_, pattern)| fits(pattern))
        .is_none_or(|(enable, _)| *enable)
}

fn fstab(text: &str) -> Vec<FstabEntry> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let mut word = || {
            words
                .next()
                // Shown to people: nothing in it steers a terminal.
                .map(|word| word.chars().filter(|c| !c.is_control()).take(256).collect())
        };
        let (source, target, kind): (String, String, String) = (word()?, word()?, word()?);
        (!source.starts_with('#')).then_some(FstabEntry {
            source,
            target,
            kind,
        })
    };
    text.lines().filter_map(entry).take(MAX_FSTAB).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::files::Folder;
    use std::fs;
    use std::path::Path;

    #[test]
    fn fields_of_os_release() {
        let text = "ID=debian\n# ID=no\nPRETTY_NAME=\"A \\\"b\\\" c\"\nVERSION_ID='12'\nEMPTY=\nID_LIKE=x\n";
        for (name, value) in [
            ("ID", Some("debian")),
            ("PRETTY_NAME", Some("A \"b\" c")),
            ("VERSION_ID", Some("12")),
            ("EMPTY", None),
            ("NONE", None),
        ] {
            assert_eq!(release_field(text, name).as_deref(), value, "{name}");
        }
        assert_eq!(
            release_field("ID=\"\u{1b}[31mred\"", "ID").as_deref(),
            Some("[31mred")
        );
        assert_eq!(release_field("ID=\"", "ID"), None);
    }

    #[test]
    fn entries_of_fstab() {
        let text =
            "# a comment\nUUID=1 / ext4 defaults 0 1\n\ntmpfs /tmp\u{1b}[2J tmpfs\nshort line\n";
        let entries = fstab(text);
        let shown: Vec<_> = entries
            .iter()
            .map(|e| (e.target.as_str(), e.is_device()))
            .collect();
        assert_eq!(shown, [("/", true), ("/tmp[2J", false)]);
    }

    fn put(root: &Path, path: &str, content: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn an_os_tree_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let read = || Os::read(&Folder::open(root).unwrap()).unwrap();
        let empty = read();
        assert!(!empty.has_os_release && empty.init.is_none() && !empty.merged_usr);
        assert_eq!(empty.machine_id, MachineId::Absent);

        put(root, "usr/lib/os-release", b"ID=debian\nVERSION_ID=12\n");
        let mut elf = [0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 183;
        put(root, "usr/lib/systemd/systemd", &elf);
        put(
            root,
            "var/lib/dpkg/status",
            b"Package: a\nVersion: 1\n\nPackage: systemd\nVersion: 247.3-7\n",
        );
        std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
        let unit = "usr/lib/systemd/system/systemd-networkd.service";
        put(root, unit, b"");
        put(
            root,
            "usr/lib/systemd/system-generators/cloud-init-generator",
            b"x",
        );
        put(root, "etc/fstab", b"LABEL=boot /boot vfat\n");
        let os = read();
        assert_eq!(os.version.as_deref(), Some("12"));
        assert_eq!(os.architecture, Some("arm64"));
        assert_eq!(os.systemd, Some(247));
        assert_eq!(os.init, Some("usr/lib/systemd/systemd"));
        assert!(os.merged_usr);
        // The next boot is the first: what no preset turns off is on.
        assert_eq!(os.services, ["systemd-networkd", "cloud-init"]);
        assert_eq!(os.fstab.len(), 1);

        put(
            root,
            "usr/lib/systemd/system-preset/90-x.preset",
            b"disable systemd-*\n",
        );
        assert_eq!(read().services, ["cloud-init"]);
        put(
            root,
            "etc/machine-id",
            b"0123456789abcdef0123456789abcdef\n",
        );
        put(
            root,
            "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
            b"",
        );
        put(root, "etc/cloud/cloud-init.disabled", b"");
        put(
            root,
            "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.3-1.fc42.so",
            b"",
        );
        let os = read();
        assert_eq!(os.services, ["systemd-networkd"]);
        assert_eq!(os.machine_id, MachineId::Set);
        assert_eq!(os.systemd, Some(257));
        std::os::unix::fs::symlink(
            "/dev/null",
            root.join("etc/systemd/system/systemd-networkd.service"),
        )
        .unwrap();
        assert!(read().services.is_empty());
    }
}
